"""What was asked for over the last seconds, from readings of running totals."""

import math
from typing import Final

from control_plane.autoscaler.demand import STEP_S, Demand

_RESOLUTION_S: Final = 0.25


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


class _Reading:
    """Running totals at an instant, and the reading that came after."""

    __slots__ = ("arrivals", "at", "executed", "executing", "later", "requests")

    def __init__(
        self, at: float, requests: float, executing: float, arrivals: float, executed: float
    ) -> None:
        self.at = at
        self.requests = requests
        self.executing = executing
        self.arrivals = arrivals
        self.executed = executed
        self.later: _Reading | None = None


class Windows:
    """Readings of a revision's demand, as far back as a long and a short span.

    Between two readings the totals are taken to grow evenly. While nothing arrives or leaves they
    do, so nobody has to look then. Before a span has passed means are over what there is (as in
    Knative's KPA).

    Each reading has the next, and a span the one that it begins at or after: what is older goes
    when the long span has left it. Those that a tick takes lie side by side in memory, and those
    that it meets again where spans begin did when they were taken: ten thousand busy models have
    600,000 of them, and a tick waits for memory longer than it computes.
    """

    __slots__ = (
        *("_at_before", "_at_once", "_in_flight", "_last", "_long", "_long_s", "_short"),
        *("_short_from", "_short_s"),
    )

    _long: _Reading | None  # the newest that another follows at or before the span, or the oldest
    _short: _Reading | None
    _last: _Reading | None
    _at_before: float  # when the one before it was
    _short_from: float  # request-seconds at some begin of the short span
    _at_once: int  # at the last reading
    _in_flight: int

    def __init__(self, long_s: float, short_s: float) -> None:
        self._long_s, self._short_s = long_s, short_s
        self._clear()

    def __len__(self) -> int:
        count, reading = 0, self._long
        while reading is not None:
            count, reading = count + 1, reading.later
        return count

    def record(self, demand: Demand, *, now: float, quiet_until: float | None = None) -> None:
        """Takes a reading; one that is not finite is no reading, one that fell starts anew.

        Nothing happened from the reading before until `quiet_until`, if that is given.
        """
        if not demand.is_finite:
            return
        last = self._last
        if last is not None:
            if last.at - STEP_S < now < last.at:
                return  # of a tick that was left for others: the last one came meanwhile
            if now < last.at or demand.request_seconds < last.requests:
                self._clear()
            else:
                self.carry(quiet_until)
        # A reading close to the one before the last replaces the last: pokes fill no memory.
        if now - self._at_before < _RESOLUTION_S and (last := self._last) is not None:
            last.at, last.requests = now, demand.request_seconds
            last.executing, last.executed = demand.executing_seconds, float(demand.executed)
            last.arrivals = float(demand.arrivals)
        else:
            self._append(
                now,
                demand.request_seconds,
                demand.executing_seconds,
                demand.arrivals,
                demand.executed,
            )
        self._at_once, self._in_flight = demand.concurrency, demand.in_flight

    def restart(self, demand: Demand, *, now: float) -> None:
        """Forgets what was: a revision that wakes is not judged by its sleep."""
        self._clear()
        self.record(demand, now=now)

    def long(self, *, now: float) -> Load | None:
        """The load over the long span; None before there are two readings."""
        begin_at = now - self._long_s
        self._long = begin = self._newest(self._long, begin_at)
        return self._load(begin, begin_at)

    def short(self, *, now: float) -> Load | None:
        """The load over the short span; None before there are two readings."""
        begin_at = now - self._short_s
        self._short = begin = self._newest(self._short, begin_at)
        return self._load(begin, begin_at)

    def is_short_within(self, most: float, *, now: float) -> bool:
        """Whether requests at once over the short span are `most` at most, for certain.

        Totals never fall, so what came since an earlier begin is at least what came since this
        one: that mostly is enough, and spares the look at what was then.
        """
        last = self._last
        if last is None:
            return False
        if last.requests - self._short_from <= most * self._short_s:
            return True
        begin_at = now - self._short_s
        self._short = begin = self._newest(self._short, begin_at)
        later = None if begin is None else begin.later
        if begin is None or later is None or not begin.at <= begin_at < later.at:
            return False
        part = (begin_at - begin.at) / (later.at - begin.at)
        self._short_from = begin.requests + part * (later.requests - begin.requests)
        return last.requests - self._short_from <= most * self._short_s

    def carry(self, at: float | None) -> None:
        """Puts the reading at an instant until which nothing arrived or left; none for None."""
        last = self._last
        if at is None or last is None or at <= last.at:
            return
        elapsed_s = at - last.at
        requests = last.requests + self._at_once * elapsed_s
        executing = last.executing + self._in_flight * elapsed_s
        self._append(at, requests, executing, last.arrivals, last.executed)

    def _append(
        self, at: float, requests: float, executing: float, arrivals: float, executed: float
    ) -> None:
        last = self._last
        reading = _Reading(at, requests, executing, arrivals, executed)
        if last is None:
            self._long = self._short = reading
        else:
            last.later, self._at_before = reading, last.at
        self._last = reading

    def _newest(self, reading: _Reading | None, begin_at: float) -> _Reading | None:
        """From this one on, the newest at or before an instant; the last is none of them."""
        if reading is None:
            return None
        last, later = self._last, reading.later
        while later is not None and later is not last and later.at <= begin_at:
            reading, later = later, later.later
        return reading

    def _clear(self) -> None:
        self._long = self._short = self._last = None
        self._at_once = self._in_flight = 0
        self._short_from = self._at_before = -math.inf

    def _load(self, begin: _Reading | None, begin_at: float) -> Load | None:
        """From an instant, or this reading if that is later, to the last reading."""
        last = self._last
        if begin is None or last is None or (later := begin.later) is None:
            return None
        at, requests, executing = begin.at, begin.requests, begin.executing
        arrivals, executed = begin.arrivals, begin.executed
        if at < begin_at < later.at:
            part = (begin_at - at) / (later.at - at)
            at = begin_at
            requests += part * (later.requests - requests)
            executing += part * (later.executing - executing)
            arrivals += part * (later.arrivals - arrivals)
            executed += part * (later.executed - executed)
        elapsed_s = last.at - at
        if elapsed_s <= 0:
            return None
        return Load(
            (last.requests - requests) / elapsed_s,
            (last.arrivals - arrivals) / elapsed_s,
            last.executing - executing,
            last.executed - executed,
        )
