"""What is asked of a revision: the value, the port that tells it, and a meter to count it."""

from dataclasses import dataclass
from typing import Protocol

from infra.contracts.base import RevisionName


@dataclass(frozen=True, slots=True)
class Demand:
    """The load of one revision at one instant.

    `last_active_at` is when a request last arrived or left (None: never), so that an idle time
    does not depend on when somebody looked. `request_seconds` is the time integral of
    `in_flight + waiting` since the source began: the difference of two readings over their
    distance is the exact mean concurrency, however short the requests.
    """

    in_flight: int
    waiting: int
    last_active_at: float | None
    request_seconds: float

    @property
    def concurrency(self) -> int:
        return self.in_flight + self.waiting


class DemandSource(Protocol):
    """Who holds the requests."""

    def demand(self, revision: RevisionName) -> Demand | None:
        """The load of a revision now; None where it is not known, which is not the same as none.

        Must be cheap and free of side effects: it is read several times a second.
        """
        ...


class DemandMeter:
    """Counts one revision's requests for a DemandSource.

    A request arrives once, is dispatched as often as it is tried, and leaves once; `leave` says
    where it was when it left.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting = 0
        self._last_active_at: float | None = None
        self._request_seconds = 0.0
        self._integrated_to = 0.0

    def arrive(self, *, now: float) -> None:
        """A request waits."""
        self._integrate(now)
        self.waiting += 1
        self._last_active_at = now

    def dispatch(self, *, now: float) -> None:
        """A waiting request goes to a replica."""
        self._integrate(now)
        self.waiting -= 1
        self.in_flight += 1

    def retry(self, *, now: float) -> None:
        """An in-flight request waits again."""
        self._integrate(now)
        self.in_flight -= 1
        self.waiting += 1

    def leave(self, *, was_in_flight: bool, now: float) -> None:
        """A request is over, however it ended."""
        self._integrate(now)
        if was_in_flight:
            self.in_flight -= 1
        else:
            self.waiting -= 1
        self._last_active_at = now

    def read(self, *, now: float) -> Demand:
        """The load now."""
        self._integrate(now)
        return Demand(self.in_flight, self.waiting, self._last_active_at, self._request_seconds)

    def _integrate(self, now: float) -> None:
        assert self.in_flight >= 0 and self.waiting >= 0, "a request left twice"
        if now > self._integrated_to:
            load = self.in_flight + self.waiting
            self._request_seconds += load * (now - self._integrated_to)
            self._integrated_to = now
