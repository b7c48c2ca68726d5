"""What one container reads of its image while it starts, and where those bytes come from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from snapshotter.index.chunk_table import Chunk

HERE: Final = "cache"
_FROM_ELSEWHERE: Final = frozenset({"origin", "peer"})


@dataclass(slots=True)
class Tally:
    """One owner. `layers`: those that count, by the digest of their index."""

    layers: frozenset[str]
    began_at: float
    opened_at: float  # when a layer of it was opened last
    _touched: dict[tuple[str, int], int] = field(default_factory=dict)
    _landed: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    _trips: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, layers: Sequence[str], *, now: float) -> "Tally":
        return cls(frozenset(layers), now, now)

    def touch(self, layer: str, chunk: Chunk) -> None:
        """Somebody reads it."""
        if layer in self.layers:
            self._touched.setdefault((layer, chunk.index), chunk.length)

    def land(self, layer: str, chunk: Chunk, source: str, *, asked_at: float, now: float) -> None:
        """It was not on this node, and is now. Of the origin's bytes those count that travelled."""
        if layer not in self.layers or source not in _FROM_ELSEWHERE:
            return
        size = chunk.source_length if source == "origin" else chunk.length
        self._landed.setdefault((layer, chunk.index), (source, size))
        self._trips.append((max(asked_at, self.began_at), now))

    def came(self) -> Counter[str]:
        """Bytes by source; those that were here when they were wanted are the cache's."""
        came: Counter[str] = Counter()
        for source, size in self._landed.values():
            came[source] += size
        came[HERE] += sum(
            length for key, length in self._touched.items() if key not in self._landed
        )
        return came

    def seconds(self) -> float:
        """In which anything was on its way from elsewhere."""
        total, end = 0.0, self.began_at
        for start, stop in sorted(self._trips):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total


class Tallies:
    """Of containers that start now. One owner."""

    def __init__(self, *, same_s: float, most_s: float) -> None:
        """A container that is made within `same_s` of its image's pull waited for that, too. After
        `most_s` none starts any more.
        """
        self._same_s = same_s
        self._most_s = most_s
        self._pulled: dict[str, Tally] = {}  # by image
        self._starting: dict[str, Tally] = {}  # by container

    def __bool__(self) -> bool:
        return bool(self._pulled or self._starting)

    def pull(self, image: str, layers: Sequence[str], *, now: float) -> None:
        """An image comes here, and a container of it may follow."""
        self._pulled[image] = Tally.of(layers, now=now)

    def start(self, container: str, image: str, layers: Sequence[str], *, now: float) -> None:
        """May be repeated."""
        pulled = self._pulled.pop(image, None)
        if container not in self._starting:
            is_same = pulled is not None and now - pulled.opened_at <= self._same_s
            tally = pulled if pulled is not None and is_same else Tally.of(layers, now=now)
            self._starting[container] = tally

    def end(self, container: str) -> None:
        self._starting.pop(container, None)

    def find(self, container: str) -> Tally | None:
        return self._starting.get(container)

    def open(self, layer: str, *, now: float) -> None:
        """The layer can be read from now on."""
        for tally in self._pulled.values():
            if layer in tally.layers:
                tally.opened_at = now

    def touch(self, layer: str, chunk: Chunk) -> None:
        for tally in self._all():
            tally.touch(layer, chunk)

    def land(self, layer: str, chunk: Chunk, source: str, *, asked_at: float, now: float) -> None:
        for tally in self._all():
            tally.land(layer, chunk, source, asked_at=asked_at, now=now)

    def forget_old(self, *, now: float) -> None:
        for image, tally in list(self._pulled.items()):
            if now - tally.opened_at > self._same_s:
                del self._pulled[image]
        for container, tally in list(self._starting.items()):
            if now - tally.began_at > self._most_s:
                del self._starting[container]

    def _all(self) -> list[Tally]:
        return [*self._pulled.values(), *self._starting.values()]
