"""When pools of standby workers may be refilled: not beside a climb, not after failures."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from infra.backoff import Backoff
from worker.node.launcher import Exit

log = structlog.get_logger()

PATIENCE_S = 5.0  # a climb has the cores to itself for so long at most
SETTLE_S = 0.25  # and the first request after it for so long
STEADY_S = 10.0  # who lived so long did not die of its start


@dataclass(slots=True)
class _Rest:
    """Of one image."""

    failures: int
    is_on: bool = True


class Refill:
    """Belongs to the event loop; `on_allowed` is called when a pause is over.

    An image of which workers fail at once rests alone: others are no worse for it.
    """

    def __init__(self, on_allowed: Callable[[], None]) -> None:
        self._on_allowed = on_allowed
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._failures = 0
        self._of_images: dict[str, _Rest] = {}

    @property
    def is_allowed(self) -> bool:
        return self._pause is None

    def climb_began(self) -> None:
        self._hold(PATIENCE_S)

    def climbs_ended(self) -> None:
        """None is left: the pool may soon be refilled."""
        self._hold(SETTLE_S, anew=True)

    def climb_succeeded(self) -> None:
        """Processes can be started here, whatever went wrong before."""
        self._failures = 0

    @property
    def resting(self) -> frozenset[str]:
        """Images that are not parked now."""
        return frozenset(image for image, rest in self._of_images.items() if rest.is_on)

    def lost_standby(self, end: Exit, *, lived_s: float, image: str | None = None) -> None:
        """A worker of the pool ended by itself: waits longer each time that happens at once."""
        is_steady = lived_s > STEADY_S
        if image is not None:
            self._rest(image, end, is_steady=is_steady)
            return
        self._failures = 1 if is_steady else self._failures + 1
        rest_s = Backoff().delay_s(self._failures)
        log.warning("standby.lost", end=str(end), rest_s=rest_s)
        self._hold(rest_s)

    def keep_only(self, images: Collection[str]) -> None:
        """Forgets how it went with images that are no longer wanted."""
        for image in self._of_images.keys() - images:
            del self._of_images[image]

    def _rest(self, image: str, end: Exit, *, is_steady: bool) -> None:
        before = self._of_images.get(image)
        failures = 1 if before is None or is_steady else before.failures + 1
        rest_s = Backoff().delay_s(failures)
        log.warning("standby.lost", end=str(end), rest_s=rest_s, image=image)
        rest = self._of_images[image] = _Rest(failures)
        self._loop.call_later(rest_s, self._rested, rest)

    def _rested(self, rest: "_Rest") -> None:
        rest.is_on = False
        self._on_allowed()

    def _hold(self, seconds: float, *, anew: bool = False) -> None:
        """For so long, and for as long as was said before unless `anew`."""
        if self._pause is not None:
            if not anew and self._pause.when() >= self._loop.time() + seconds:
                return
            self._pause.cancel()
        self._pause = self._loop.call_later(seconds, self._over)

    def _over(self) -> None:
        self._pause = None
        self._on_allowed()
