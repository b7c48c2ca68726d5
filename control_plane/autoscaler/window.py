"""Mean concurrency over the last seconds, from readings of a running integral."""

import math
from collections import deque

_RESOLUTION_S = 0.25


class Window:
    """Readings of a revision's `request_seconds`, as far back as `span_s`.

    The mean between two readings is exact, so it does not matter how often or how evenly they
    are taken. Before `span_s` have passed the mean is over what there is (as in Knative's KPA).
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._readings: deque[tuple[float, float]] = deque()

    def record(self, request_seconds: float, *, now: float) -> None:
        """Takes a reading; one that is not finite is no reading, one that fell starts anew."""
        if not math.isfinite(request_seconds):
            return
        if self._readings and (
            now < self._readings[-1][0] or request_seconds < self._readings[-1][1]
        ):
            self._readings.clear()
        # A reading close to the one before the last replaces the last: pokes do not fill memory.
        if len(self._readings) > 1 and now - self._readings[-2][0] < _RESOLUTION_S:
            self._readings[-1] = (now, request_seconds)
        else:
            self._readings.append((now, request_seconds))
        # The newest reading at or before the span's begin stays: it is where the span begins.
        while len(self._readings) > 2 and self._readings[1][0] <= now - self._span_s:
            self._readings.popleft()

    def restart(self, request_seconds: float, *, now: float) -> None:
        """Forgets what was: a revision that wakes is not judged by its sleep."""
        self._readings.clear()
        self.record(request_seconds, now=now)

    def mean(self, span_s: float, *, now: float) -> float | None:
        """Mean concurrency over the last `span_s`; None before there are two readings."""
        if len(self._readings) < 2:
            return None
        begin = self._readings[0]
        for reading in self._readings:
            if reading[0] > now - span_s:
                break
            begin = reading
        end = self._readings[-1]
        if end[0] <= begin[0]:
            return None
        return (end[1] - begin[1]) / (end[0] - begin[0])
