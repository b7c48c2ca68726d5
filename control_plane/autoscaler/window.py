"""What was asked for over the last seconds, from readings of running totals."""

import math
from collections import deque
from typing import NamedTuple

from control_plane.autoscaler.demand import Demand

_RESOLUTION_S = 0.25


class Load(NamedTuple):
    """Over some seconds: requests there at once and their arrivals, as means, what was executed
    in all, and how many were finished."""

    concurrency: float
    arrivals_per_s: float
    executing_s: float
    executed: int


class _Reading(NamedTuple):
    at: float
    request_seconds: float
    executing_seconds: float
    arrivals: int
    executed: int


class Window:
    """Readings of a revision's demand, as far back as `span_s`.

    The means between two readings are exact, so it does not matter how often or how evenly they
    are taken. Before `span_s` have passed they are over what there is (as in Knative's KPA).
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._readings: deque[_Reading] = deque()

    def record(self, demand: Demand, *, now: float) -> None:
        """Takes a reading; one that is not finite is no reading, one that fell starts anew."""
        if not math.isfinite(demand.request_seconds):
            return
        readings = self._readings
        if readings and (
            now < readings[-1].at or demand.request_seconds < readings[-1].request_seconds
        ):
            readings.clear()
        reading = _Reading(
            now,
            demand.request_seconds,
            demand.executing_seconds,
            demand.arrivals,
            demand.executed,
        )
        # A reading close to the one before the last replaces the last: pokes do not fill memory.
        if len(readings) > 1 and now - readings[-2].at < _RESOLUTION_S:
            readings[-1] = reading
        else:
            readings.append(reading)
        # The newest reading at or before the span's begin stays: it is where the span begins.
        while len(readings) > 2 and readings[1].at <= now - self._span_s:
            readings.popleft()

    def restart(self, demand: Demand, *, now: float) -> None:
        """Forgets what was: a revision that wakes is not judged by its sleep."""
        self._readings.clear()
        self.record(demand, now=now)

    def load(self, span_s: float, *, now: float) -> Load | None:
        """The load over the last `span_s`; None before there are two readings."""
        if len(self._readings) < 2:
            return None
        begin, end = self._begin(now - span_s), self._readings[-1]
        elapsed_s = end.at - begin.at
        if elapsed_s <= 0:
            return None
        return Load(
            (end.request_seconds - begin.request_seconds) / elapsed_s,
            (end.arrivals - begin.arrivals) / elapsed_s,
            end.executing_seconds - begin.executing_seconds,
            end.executed - begin.executed,
        )

    def _begin(self, begin_at: float) -> _Reading:
        """The newest reading at or before an instant, or the oldest."""
        readings = self._readings
        if readings[0].at >= begin_at or readings[1].at > begin_at:
            return readings[0]
        return next((it for it in reversed(readings) if it.at <= begin_at), readings[0])
