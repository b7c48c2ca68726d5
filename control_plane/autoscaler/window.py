"""What was asked for over the last seconds, from readings of running totals."""

import math
from array import array
from struct import Struct
from typing import Final

from control_plane.autoscaler.demand import STEP_S, Demand

_RESOLUTION_S = 0.25
_WIDTH = 5  # of a reading: at, request-seconds, executing-seconds, arrivals, executed
_READING = Struct(f"{_WIDTH}d").unpack_from
_BYTES = 8
_MOST_STALE = 64 * _WIDTH  # readings that nobody needs are thrown away together


class Load:
    """Over some seconds: requests there at once and their arrivals, as means, what was executed
    in all, and how many were finished."""

    __slots__ = ("arrivals_per_s", "concurrency", "executed", "executing_s")

    def __init__(
        self, concurrency: float, arrivals_per_s: float, executing_s: float, executed: float
    ) -> None:
        self.concurrency: Final = concurrency
        self.arrivals_per_s: Final = arrivals_per_s
        self.executing_s: Final = executing_s
        self.executed: Final = executed


class _Edge:
    """Where a span begins: at the place of the newest reading at or before that, with this one and
    the next at hand, for a second later it mostly still is between them."""

    __slots__ = (
        *("arrivals", "at", "executed", "executing", "is_known", "next_arrivals", "next_at"),
        *("next_executed", "next_executing", "next_requests", "place", "requests"),
    )

    def __init__(self) -> None:
        self.place = 0
        self.is_known = False
        self.at = self.requests = self.executing = self.arrivals = self.executed = 0.0
        self.next_at = self.next_requests = self.next_executing = 0.0
        self.next_arrivals = self.next_executed = 0.0

    def move(self, rows: "array[float]", begin_at: float) -> None:
        """To where the span begins by now; there are two readings."""
        place, last = self.place, len(rows) - 2 * _WIDTH
        if self.is_known:
            if begin_at < self.next_at or place >= last:
                return
            place += _WIDTH
        elif place > last:
            place = last
        while place < last and rows[place + _WIDTH] <= begin_at:
            place += _WIDTH
        self._read(rows, place)

    def _read(self, rows: "array[float]", place: int) -> None:
        if self.is_known and place == self.place + _WIDTH:
            self.at, self.requests, self.executing = (
                self.next_at,
                self.next_requests,
                self.next_executing,
            )
            self.arrivals, self.executed = self.next_arrivals, self.next_executed
        else:
            self.at, self.requests, self.executing, self.arrivals, self.executed = _READING(
                rows, place * _BYTES
            )
        (
            self.next_at,
            self.next_requests,
            self.next_executing,
            self.next_arrivals,
            self.next_executed,
        ) = _READING(rows, (place + _WIDTH) * _BYTES)
        self.place, self.is_known = place, True


class Windows:
    """Readings of a revision's demand, as far back as a long and a short span.

    Between two readings the totals are taken to grow evenly. While nothing arrives or leaves they
    do, so nobody has to look then. Before a span has passed means are over what there is (as in
    Knative's KPA).

    Readings lie side by side in one array: ten thousand busy models have 600,000 of them, and as
    objects of their own, all over the memory, a tick would wait for them longer than it computes.
    """

    __slots__ = (
        *("_arrivals", "_at", "_at_before", "_at_once", "_executed", "_executing", "_in_flight"),
        *("_long", "_long_s", "_requests", "_rows", "_short", "_short_from", "_short_s"),
    )

    _long: _Edge
    _short: _Edge
    _short_from: float  # request-seconds at some begin of the short span
    _at_once: int  # at the last reading
    _in_flight: int
    _at: float  # the last reading again, where it is at hand
    _requests: float
    _executing: float
    _arrivals: float
    _executed: float
    _at_before: float  # when the one before it was

    def __init__(self, long_s: float, short_s: float) -> None:
        self._long_s, self._short_s = long_s, short_s
        self._rows = array("d")
        self._clear()

    def __len__(self) -> int:
        return len(self._rows) // _WIDTH

    def record(self, demand: Demand, *, now: float, quiet_until: float | None = None) -> None:
        """Takes a reading; one that is not finite is no reading, one that fell starts anew.

        Nothing happened from the reading before until `quiet_until`, if that is given.
        """
        if not math.isfinite(demand.request_seconds):
            return
        if self._at - STEP_S < now < self._at:
            return  # of a tick that was left for others: the last one came meanwhile
        if now < self._at or demand.request_seconds < self._requests:
            self._clear()
        else:
            self.carry(quiet_until)
        # A reading close to the one before the last replaces the last: pokes fill no memory.
        if now - self._at_before < _RESOLUTION_S:
            self._drop_last()
            self._at = self._at_before
        self._append(
            now,
            demand.request_seconds,
            demand.executing_seconds,
            demand.arrivals,
            demand.executed,
        )
        self._at_once, self._in_flight = demand.concurrency, demand.in_flight
        if self._long.place > _MOST_STALE:
            self._drop_stale()

    def restart(self, demand: Demand, *, now: float) -> None:
        """Forgets what was: a revision that wakes is not judged by its sleep."""
        self._clear()
        self.record(demand, now=now)

    def long(self, *, now: float) -> Load | None:
        """The load over the long span; None before there are two readings."""
        return self._load(self._long, now - self._long_s)

    def short(self, *, now: float) -> Load | None:
        """The load over the short span; None before there are two readings."""
        return self._load(self._short, now - self._short_s)

    def is_short_within(self, most: float, *, now: float) -> bool:
        """Whether requests at once over the short span are `most` at most, for certain.

        Totals never fall, so what came since an earlier begin is at least what came since this
        one: that mostly is enough, and spares the look at what was then.
        """
        rows, span_s = self._rows, self._short_s
        if self._requests - self._short_from <= most * span_s:
            return True
        if len(rows) <= _WIDTH:
            return False
        edge, begin_at = self._short, now - span_s
        edge.move(rows, begin_at)
        if not edge.at <= begin_at < edge.next_at:
            return False
        part = (begin_at - edge.at) / (edge.next_at - edge.at)
        self._short_from = edge.requests + part * (edge.next_requests - edge.requests)
        return self._requests - self._short_from <= most * span_s

    def carry(self, at: float | None) -> None:
        """Puts the reading at an instant until which nothing arrived or left; none for None."""
        if at is None or at <= self._at or not self._rows:
            return
        elapsed_s = at - self._at
        requests = self._requests + self._at_once * elapsed_s
        executing = self._executing + self._in_flight * elapsed_s
        self._append(at, requests, executing, self._arrivals, self._executed)

    def _append(
        self, at: float, requests: float, executing: float, arrivals: float, executed: float
    ) -> None:
        rows = self._rows
        rows.append(at)
        rows.append(requests)
        rows.append(executing)
        rows.append(arrivals)
        rows.append(executed)
        self._at_before = self._at
        self._at, self._requests, self._executing = at, requests, executing
        self._arrivals, self._executed = arrivals, executed

    def _drop_last(self) -> None:
        rows = self._rows
        del rows[-_WIDTH:]
        for edge in (self._long, self._short):
            if edge.place + _WIDTH >= len(rows):
                edge.is_known = False

    def _drop_stale(self) -> None:
        stale = self._long.place
        del self._rows[:stale]
        self._long.place = 0
        if self._short.place < stale:
            self._short = _Edge()
        else:
            self._short.place -= stale

    def _clear(self) -> None:
        del self._rows[:]
        self._long, self._short = _Edge(), _Edge()
        self._at_once = self._in_flight = 0
        self._short_from = self._at = self._at_before = -math.inf
        self._requests = self._executing = self._arrivals = self._executed = 0.0

    def _load(self, edge: _Edge, begin_at: float) -> Load | None:
        """From an instant, or the reading at this edge if that is later, to the last reading."""
        if len(self._rows) <= _WIDTH:
            return None
        edge.move(self._rows, begin_at)
        at, requests, executing = edge.at, edge.requests, edge.executing
        arrivals, executed = edge.arrivals, edge.executed
        if at < begin_at < edge.next_at:
            part = (begin_at - at) / (edge.next_at - at)
            at = begin_at
            requests += part * (edge.next_requests - requests)
            executing += part * (edge.next_executing - executing)
            arrivals += part * (edge.next_arrivals - arrivals)
            executed += part * (edge.next_executed - executed)
        elapsed_s = self._at - at
        if elapsed_s <= 0:
            return None
        return Load(
            (self._requests - requests) / elapsed_s,
            (self._arrivals - arrivals) / elapsed_s,
            self._executing - executing,
            self._executed - executed,
        )
