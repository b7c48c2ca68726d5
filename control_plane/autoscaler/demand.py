"""What is asked of a revision: the value, the port that tells it, and a meter to count it."""

import math
from collections.abc import Callable, Set
from typing import Final, NamedTuple, Protocol

from infra.contracts.base import RevisionName

SHORTEST_IDLE_S: Final = 1.0
_INFINITE: Final = math.inf
STEP_S: Final = 1.0  # the clock stepped back; by less, two that read it told us in another order


class IdleTime(NamedTuple):
    """Nothing was asked for between these two instants."""

    began_at: float
    ended_at: float


class Demand:
    """The load of one revision at one instant: a value, of which a tick makes ten thousand.

    `last_active_at` is when a request last arrived or left (None: never), so that an idle time
    does not depend on when somebody looked. `request_seconds` is the time integral of
    `in_flight + waiting` since the source began: the difference of two readings over their
    distance is the exact mean concurrency, however short the requests. `executing_seconds` is
    the part of it that was in flight, `arrivals` and `executed` count requests that came and
    those that left a replica. `idled` is the last idle time of SHORTEST_IDLE_S or more that is
    over.
    """

    __slots__ = (
        "arrivals",
        "executed",
        "executing_seconds",
        "idled",
        "in_flight",
        "last_active_at",
        "request_seconds",
        "waiting",
    )

    def __init__(
        self,
        in_flight: int,
        waiting: int,
        last_active_at: float | None,
        request_seconds: float,
        executing_seconds: float = 0.0,
        arrivals: int = 0,
        executed: int = 0,
        idled: IdleTime | None = None,
    ) -> None:
        self.in_flight: Final = in_flight
        self.waiting: Final = waiting
        self.last_active_at: Final = last_active_at
        self.request_seconds: Final = request_seconds
        self.executing_seconds: Final = executing_seconds
        self.arrivals: Final = arrivals
        self.executed: Final = executed
        self.idled: Final = idled

    @property
    def concurrency(self) -> int:
        return self.in_flight + self.waiting

    @property
    def is_finite(self) -> bool:
        """Whether its total is a number to reckon with."""
        return -_INFINITE < self.request_seconds < _INFINITE


class DemandSource(Protocol):
    """Who holds the requests."""

    def demand(self, revision: RevisionName) -> Demand | None:
        """The load of a revision now; None where it is not known, which is not the same as none.

        Must be cheap and free of side effects: it is read several times a second.
        """
        ...

    def changed(self) -> Set[RevisionName]:
        """Of which revisions requests arrived, left, or moved since this was called last.

        Those of which that is not known are among them.
        """
        ...


class DemandMeter:
    """Counts one revision's requests for a DemandSource.

    A request arrives once, is dispatched as often as it is tried, and leaves once; `leave` says
    where it was when it left. Each of them calls `changed`.
    """

    __slots__ = (
        "_arrivals",
        "_changed",
        "_executed",
        "_executing_seconds",
        "_idled",
        "_integrated_to",
        "_last_active_at",
        "_request_seconds",
        "in_flight",
        "waiting",
    )

    def __init__(self, changed: Callable[[], object] = lambda: None) -> None:
        self.in_flight = 0
        self.waiting = 0
        self._changed = changed
        self._last_active_at: float | None = None
        self._request_seconds = 0.0
        self._executing_seconds = 0.0
        self._integrated_to = 0.0
        self._arrivals = 0
        self._executed = 0
        self._idled: IdleTime | None = None

    def arrive(self, *, now: float) -> None:
        """A request waits."""
        self._changed()
        self._integrate(now)
        if self._last_active_at is not None and not self.in_flight and not self.waiting:
            self._end_idle_time(self._last_active_at, now)
        self.waiting += 1
        self._arrivals += 1
        self._last_active_at = now

    def arrive_at_replica(self, *, now: float) -> None:
        """A request goes to a replica without a wait."""
        self._changed()
        self._integrate(now)
        if self._last_active_at is not None and not self.in_flight and not self.waiting:
            self._end_idle_time(self._last_active_at, now)
        self.in_flight += 1
        self._arrivals += 1
        self._last_active_at = now

    def dispatch(self, *, now: float) -> None:
        """A waiting request goes to a replica."""
        self._changed()
        self._integrate(now)
        self.waiting -= 1
        self.in_flight += 1

    def retry(self, *, now: float) -> None:
        """An in-flight request waits again."""
        self._changed()
        self._integrate(now)
        self.in_flight -= 1
        self.waiting += 1

    def leave(self, *, was_in_flight: bool, now: float) -> None:
        """A request is over, however it ended."""
        self._changed()
        self._integrate(now)
        if was_in_flight:
            self.in_flight -= 1
            self._executed += 1
        else:
            self.waiting -= 1
        self._last_active_at = now

    def read(self, *, now: float) -> Demand:
        """The load now."""
        self._integrate(now)
        return Demand(
            self.in_flight,
            self.waiting,
            self._last_active_at,
            self._request_seconds,
            self._executing_seconds,
            self._arrivals,
            self._executed,
            self._idled,
        )

    def _end_idle_time(self, began_at: float, now: float) -> None:
        if now - began_at >= SHORTEST_IDLE_S:
            self._idled = IdleTime(began_at, now)

    def _integrate(self, now: float) -> None:
        assert self.in_flight >= 0 and self.waiting >= 0, "a request left twice"
        if now > self._integrated_to:
            elapsed_s = now - self._integrated_to
            self._request_seconds += (self.in_flight + self.waiting) * elapsed_s
            self._executing_seconds += self.in_flight * elapsed_s
            self._integrated_to = now
        elif now < self._integrated_to - STEP_S:
            self._integrated_to = now
            if self._last_active_at is not None:
                self._last_active_at = min(self._last_active_at, now)
