"""The requests that are at replicas, and until when each of them may be."""

import asyncio
import math
from typing import Final, Protocol

from infra.clock import Clock

_SOON_S: Final = 0.005  # one look serves all that expire within it


class Flight(Protocol):
    """What is at a replica."""

    def expire(self) -> None:
        """Its time is over."""
        ...


class Flights:
    """One timer for all of them: a timer each would cost more than most of what it guards.

    `is_closing` says that nothing may begin any more.
    """

    def __init__(self, clock: Clock) -> None:
        self.is_closing = False
        self._clock = clock
        self._until: dict[Flight, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._nobody: asyncio.Future[None] | None = None

    def begin(self, flight: Flight, *, until: float) -> None:
        """It is at a replica now; it expires unless it ends before."""
        self._until[flight] = until
        if until < self._timer_at:
            self._arm(until)

    def end(self, flight: Flight) -> None:
        """It is at no replica any more; may be repeated."""
        self._until.pop(flight, None)
        if not self._until and self._nobody is not None and not self._nobody.done():
            self._nobody.set_result(None)

    async def close(self, *, within_s: float) -> None:
        """Returns when nothing is under way; what still is after `within_s` expires."""
        self.is_closing = True
        last = self._clock.now() + within_s
        self._until = {flight: min(until, last) for flight, until in self._until.items()}
        if self._until:
            self._arm(min(self._until.values()))
            self._nobody = asyncio.get_running_loop().create_future()
            await self._nobody

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay_s = max(0.0, at - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = self._clock.now() + _SOON_S
        expired = [flight for flight, until in self._until.items() if until <= now]
        for flight in expired:
            del self._until[flight]
        if self._until:
            self._arm(min(self._until.values()))
        for flight in expired:
            flight.expire()
        if not self._until and self._nobody is not None and not self._nobody.done():
            self._nobody.set_result(None)
