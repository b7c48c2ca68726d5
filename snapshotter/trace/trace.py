"""Which chunks a start touched, in the order of their first touch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from infra.containerd.labels import MOST_ENTRYPOINT_BYTES
from infra.errors import ImageInvalid
from infra.registry.reference import DIGEST

MOST_TOUCHES: Final = 200_000
MOST_TRACE_BYTES: Final = 4 << 20
_MOST_LAYERS: Final = 512


@dataclass(frozen=True, slots=True)
class Touch:
    """One chunk of one layer, which is called by the digest of its index."""

    layer: str
    chunk: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A start of one program of one image."""

    image: str  # digest of its manifest
    entrypoint: str
    touches: tuple[Touch, ...]

    def packed(self) -> bytes:
        """JSON, a number for each layer."""
        layers = list(dict.fromkeys(touch.layer for touch in self.touches))
        number = {layer: place for place, layer in enumerate(layers)}
        return orjson.dumps(
            {
                "image": self.image,
                "entrypoint": self.entrypoint,
                "layers": layers,
                "touches": [[number[touch.layer], touch.chunk] for touch in self.touches],
            }
        )

    @classmethod
    def parse(cls, packed: bytes) -> "Trace":
        """The inverse of `packed`. Raises ImageInvalid: a trace may come from a registry."""
        if len(packed) > MOST_TRACE_BYTES:
            raise ImageInvalid(f"a trace of {len(packed)} bytes", limit=MOST_TRACE_BYTES)
        try:
            return _parse(orjson.loads(packed))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ImageInvalid(f"the trace is malformed: {error}") from error


def _parse(said: Mapping[str, Any]) -> Trace:
    image, entrypoint, layers = said["image"], said["entrypoint"], said["layers"]
    if not all(DIGEST.fullmatch(digest) for digest in [image, *layers]):
        raise ImageInvalid("the trace names something else than digests")
    if len(layers) > _MOST_LAYERS or len(said["touches"]) > MOST_TOUCHES:
        raise ImageInvalid("the trace is too long")
    if not isinstance(entrypoint, str) or len(entrypoint.encode()) > MOST_ENTRYPOINT_BYTES:
        raise ImageInvalid("the trace names no program")
    touches = []
    for number, chunk in said["touches"]:
        if number < 0 or not isinstance(chunk, int) or chunk < 0:
            raise ImageInvalid("the trace has a negative number")
        touches.append(Touch(layers[number], chunk))
    return Trace(image, entrypoint, tuple(touches))


def better(kept: Trace | None, recorded: Trace) -> Trace:
    """The one to keep: the newer, unless it saw a start for which much was in the page cache."""
    if kept is None or 2 * len(recorded.touches) >= len(kept.touches):
        return recorded
    return kept


class Recording:
    """The touches of one start, while it goes on. One owner."""

    def __init__(self, image: str, entrypoint: str, layers: Sequence[str], *, now: float) -> None:
        self.image = image
        self.entrypoint = entrypoint
        self.layers = set(layers)
        self.began_at = now
        self.touched_at = now
        self._touches: dict[Touch, None] = {}  # in the order of their first touch

    def touch(self, layer: str, chunk: int, *, now: float) -> None:
        """Only the first touch of a chunk counts, and no more than MOST_TOUCHES."""
        if layer in self.layers and len(self._touches) < MOST_TOUCHES:
            touch = Touch(layer, chunk)
            if not self._touches:
                self.began_at = now
            if touch not in self._touches:
                self._touches[touch] = None
                self.touched_at = now

    def is_over(self, *, now: float, quiet_s: float, most_s: float) -> bool:
        """Whether a start that was not called ready has to be taken for it.

        One of which somebody says what it runs will be called so: it may be quiet, parked above
        all, but not for ever.
        """
        if not self._touches:
            return False  # it was pulled, and nothing of it was started yet
        is_quiet = not self.entrypoint and now - self.touched_at > quiet_s
        return is_quiet or now - self.began_at > most_s

    def trace(self) -> Trace:
        return Trace(self.image, self.entrypoint, tuple(self._touches))
