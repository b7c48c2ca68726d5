"""How long a replica that nobody uses is kept: the break-even time, learnt from past idle times.

A ski rental. Idle time costs its seconds, a cold start costs `cold_cost_s` idle seconds (K). Who
knows the future pays min(x, K) for an idle time x; who stops after a grace T pays x when the next
request comes first and T + K when it does not.

Guarantee. Let `saved_s` be twice what the clairvoyant has paid minus what we have paid, over the
first cold start, which costs both K, and all idle times that are over. So it begins at K, and
every grace lies in [K - saved, K + saved]. Then:

    the request comes first, x <= T   we pay x, he min(x, K): saved grows by x where x <= K,
                                      else it changes by 2K - x >= 2K - T >= K - saved >= -saved
    it comes later, x > T             we pay T + K, he min(x, K) >= min(T, K):
                          T <= K      saved changes by at least 2T - T - K = T - K >= -saved
                          T >= K      saved changes by           2K - T - K = K - T >= -saved

So saved never falls below 0: whatever the arrivals, at no request have we paid more than twice
what the clairvoyant has, however wrong the past was about the future. That holds with another K
for each idle time, too. Saved is capped at K: a grace is at most 2K, and over any run of idle
times, wherever it begins, we pay at most 2 x clairvoyant + K: what was saved long ago buys one
mistake. With nothing saved T = K, the best that can be promised without a forecast (Karlin et
al., Algorithmica 3, 1988), and with nothing learnt, too.

Within those limits the grace is the one that would have cost least over the last idle times.
"""

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

REMEMBERED = 128  # idle times a model: some kilobytes, and microseconds to look through
_ENOUGH = 3  # idle times before the past is asked at all


class KeepAlive:
    """The account of one model's idle times, in seconds."""

    def __init__(self, idle_times: Iterable[float] = (), *, saved_s: float = math.inf) -> None:
        self.saved_s = saved_s  # it counts up to one cold start; at first it is one, at any price
        self._latest: deque[float] = deque()
        self._ascending: list[float] = []
        self._best: tuple[float, float] | None = None  # cold cost, best grace at that cost
        for idle_s in idle_times:
            self._learn(idle_s)

    @property
    def idle_times(self) -> tuple[float, ...]:
        """The last idle times, oldest first."""
        return tuple(self._latest)

    def grace_s(self, cold_cost_s: float) -> float:
        """How long to keep a replica from now on, if a cold start costs so much."""
        saved_s = min(self.saved_s, cold_cost_s)
        best_s = self._best_grace_s(cold_cost_s)
        return max(cold_cost_s - saved_s, min(best_s, cold_cost_s + saved_s))

    def settle(self, idle_s: float, *, grace_s: float, cold_cost_s: float) -> None:
        """An idle time is over, in which a replica was kept for `grace_s` at most."""
        paid_s = idle_s if idle_s <= grace_s else grace_s + cold_cost_s
        earned_s = 2 * min(idle_s, cold_cost_s) - paid_s
        saved_s = min(min(self.saved_s, cold_cost_s) + earned_s, cold_cost_s)
        # Rounding is no debt: a grace would be longer by it, and each late request would double it.
        self.saved_s = max(0.0, saved_s)
        self._learn(idle_s)

    def _learn(self, idle_s: float) -> None:
        self._best = None
        self._latest.append(idle_s)
        insort(self._ascending, idle_s)
        if len(self._latest) > REMEMBERED:
            self._ascending.remove(self._latest.popleft())

    def _best_grace_s(self, cold_cost_s: float) -> float:
        if self._best is None or self._best[0] != cold_cost_s:
            self._best = (cold_cost_s, best_grace_s(self._ascending, cold_cost_s))
        return self._best[1]


def best_grace_s(idle_times: Sequence[float], cold_cost_s: float) -> float:
    """The grace that would have cost least over these idle times, which are in ascending order.

    Between two of them a longer grace only costs more, so that those that occurred, up to 2K, and
    none at all are tried. The break-even time wins ties, and where there are few idle times.
    """
    count = len(idle_times)
    if count < _ENOUGH:
        return cold_cost_s
    best_s, least = cold_cost_s, cost_s(idle_times, cold_cost_s, cold_cost_s)
    if count * cold_cost_s < least:
        best_s, least = 0.0, count * cold_cost_s
    kept_s = 0.0
    tried = bisect_right(idle_times, 2 * cold_cost_s)
    for place, idle_s in enumerate(islice(idle_times, tried), start=1):
        kept_s += idle_s
        cost = kept_s + (count - place) * (idle_s + cold_cost_s)
        if cost < least:
            best_s, least = idle_s, cost
    return best_s


def cost_s(idle_times: Sequence[float], grace_s: float, cold_cost_s: float) -> float:
    """What a fixed grace costs over idle times in ascending order, in idle seconds."""
    kept = bisect_right(idle_times, grace_s)
    return sum(islice(idle_times, kept)) + (len(idle_times) - kept) * (grace_s + cold_cost_s)
