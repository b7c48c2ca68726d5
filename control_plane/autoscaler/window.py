"""What was asked for over the last seconds, from readings of running totals."""

import math
from array import array
from struct import Struct
from typing import NamedTuple

from control_plane.autoscaler.demand import Demand

_RESOLUTION_S = 0.25
_WIDTH = 5  # of a reading: at, request-seconds, executing-seconds, arrivals, executed
_TWO = Struct(f"{2 * _WIDTH}d").unpack_from
_BYTES = 8
_MOST_STALE = 64 * _WIDTH  # readings that nobody needs are thrown away together


class Load(NamedTuple):
    """Over some seconds: requests there at once and their arrivals, as means, what was executed
    in all, and how many were finished."""

    concurrency: float
    arrivals_per_s: float
    executing_s: float
    executed: float


class Windows:
    """Readings of a revision's demand, as far back as a long and a short span.

    Between two readings the totals are taken to grow evenly. While nothing arrives or leaves they
    do, so nobody has to look then. Before a span has passed means are over what there is (as in
    Knative's KPA).

    Readings lie side by side in one array: ten thousand busy models have 600,000 of them, and as
    objects of their own, all over the memory, a tick would wait for them longer than it computes.
    """

    __slots__ = (
        "_at_once",
        "_in_flight",
        "_long",
        "_long_s",
        "_rows",
        "_short",
        "_short_from",
        "_short_s",
    )

    def __init__(self, long_s: float, short_s: float) -> None:
        self._long_s, self._short_s = long_s, short_s
        self._rows = array("d")
        self._long = self._short = 0  # where the newest reading at or before the span's begin is
        self._short_from = -math.inf  # request-seconds at some begin of the short span
        self._at_once = self._in_flight = 0  # at the last reading

    def __len__(self) -> int:
        return len(self._rows) // _WIDTH

    def record(self, demand: Demand, *, now: float, quiet_until: float | None = None) -> None:
        """Takes a reading; one that is not finite is no reading, one that fell starts anew.

        Nothing happened from the reading before until `quiet_until`, if that is given.
        """
        in_flight, waiting, _, request_seconds, executing_seconds, arrivals, executed, _ = demand
        if not math.isfinite(request_seconds):
            return
        rows = self._rows
        if rows:
            if now < rows[-5] or request_seconds < rows[-4]:
                self._clear()
            elif quiet_until is not None and quiet_until > rows[-5]:
                self._carry(quiet_until)
            # A reading close to the one before the last replaces the last: pokes fill no memory.
            if len(rows) > _WIDTH and now - rows[-2 * _WIDTH] < _RESOLUTION_S:
                del rows[-_WIDTH:]
        rows.extend((now, request_seconds, executing_seconds, arrivals, executed))
        self._at_once, self._in_flight = in_flight + waiting, in_flight
        if self._long > _MOST_STALE:
            del rows[: self._long]
            self._short = max(0, self._short - self._long)
            self._long = 0

    def restart(self, demand: Demand, *, now: float) -> None:
        """Forgets what was: a revision that wakes is not judged by its sleep."""
        self._clear()
        self.record(demand, now=now)

    def long(self, *, now: float) -> Load | None:
        """The load over the long span; None before there are two readings."""
        begin_at = now - self._long_s
        self._long = place = _begin(self._rows, self._long, begin_at)
        return _load(self._rows, place, begin_at)

    def short(self, *, now: float) -> Load | None:
        """The load over the short span; None before there are two readings."""
        begin_at = now - self._short_s
        self._short = place = _begin(self._rows, self._short, begin_at)
        return _load(self._rows, place, begin_at)

    def is_short_within(self, most: float, *, now: float) -> bool:
        """Whether requests at once over the short span are `most` at most, for certain.

        Totals never fall, so what came since an earlier begin is at least what came since this
        one: that mostly is enough, and spares the look at what was then.
        """
        rows, span_s = self._rows, self._short_s
        if rows[-4] - self._short_from <= most * span_s:
            return True
        if len(rows) <= _WIDTH:
            return False
        begin_at = now - span_s
        self._short = place = _begin(rows, self._short, begin_at)
        at, next_at = rows[place], rows[place + _WIDTH]
        if not at <= begin_at < next_at:
            return False
        before, after = rows[place + 1], rows[place + _WIDTH + 1]
        self._short_from = before + (begin_at - at) / (next_at - at) * (after - before)
        return rows[-4] - self._short_from <= most * span_s

    def _carry(self, at: float) -> None:
        """Puts the reading at an instant until which nothing arrived or left."""
        began_at, requests, executing, arrivals, executed = self._rows[-_WIDTH:]
        elapsed_s = at - began_at
        requests += self._at_once * elapsed_s
        executing += self._in_flight * elapsed_s
        self._rows.extend((at, requests, executing, arrivals, executed))

    def _clear(self) -> None:
        del self._rows[:]
        self._long = self._short = 0
        self._short_from = -math.inf


def _begin(rows: "array[float]", place: int, begin_at: float) -> int:
    """Where the newest reading at or before an instant is, but for the last one."""
    last = len(rows) - 2 * _WIDTH
    if place > last:
        return max(0, last)
    while place < last and rows[place + _WIDTH] <= begin_at:
        place += _WIDTH
    return place


def _load(rows: "array[float]", place: int, begin_at: float) -> Load | None:
    if len(rows) <= _WIDTH:
        return None
    (
        at,
        requests,
        executing,
        arrivals,
        executed,
        next_at,
        next_requests,
        next_executing,
        next_arrivals,
        next_executed,
    ) = _TWO(rows, place * _BYTES)
    if at < begin_at < next_at:
        part = (begin_at - at) / (next_at - at)
        at = begin_at
        requests += part * (next_requests - requests)
        executing += part * (next_executing - executing)
        arrivals += part * (next_arrivals - arrivals)
        executed += part * (next_executed - executed)
    elapsed_s = rows[-5] - at
    if elapsed_s <= 0:
        return None
    return Load(
        (rows[-4] - requests) / elapsed_s,
        (rows[-2] - arrivals) / elapsed_s,
        rows[-3] - executing,
        rows[-1] - executed,
    )
