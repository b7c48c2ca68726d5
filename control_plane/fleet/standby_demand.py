"""How many parked workers the starts of all models together are worth: pure.

A newsvendor. A parked worker costs its seconds, wanted or not; a start that finds none costs what
the climb then takes longer. A node refills its pool within REFILL_S, so starts that close together
want a worker each, whichever models they are of: a start is of rank k when it is the k-th within
REFILL_S. The k-th worker serves the starts of rank k and no others. So it is worth keeping as long
as the starts of that rank would have paid for the time that is looked back on:

    sum of worth_s over the starts of rank k  >=  seconds looked back on

What was is taken for what is likely: ranks are counted as they were, so models that are called at
the same time of day, or by each other, count as that, which a sum of rates would not show.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

REFILL_S = 6.0  # a climb has the cores to itself for up to 5 s before the pool is refilled
LOOK_BACK_S = 24 * 3600.0
_AT_LEAST_S = 3600.0  # seconds looked back on: two starts of the first minute are no rate
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Start:
    """A replica that started; a parked worker is worth `worth_s` of its own time to it."""

    at: float
    worth_s: float


@dataclass(frozen=True, slots=True)
class Worth:
    """So many parked workers are worth their price; `reason` says by which starts."""

    workers: int = 0
    reason: str = ""


class Starts:
    """The last starts on one class of nodes."""

    def __init__(self) -> None:
        self._starts: deque[Start] = deque(maxlen=_REMEMBERED)

    def add(self, start: Start) -> None:
        """Starts may come a little out of order."""
        self._starts.append(start)

    def worth(self, *, most: int, now: float, refill_s: float = REFILL_S) -> Worth:
        """How many are worth keeping, `most` at most."""
        recent = [start for start in self._starts if start.at > now - LOOK_BACK_S]
        return worth_parking(recent, most=most, now=now, refill_s=refill_s)


def worth_parking(
    starts: Iterable[Start], *, most: int, now: float, refill_s: float = REFILL_S
) -> Worth:
    """As many as are worth their time, by the starts until now; what is taken is there again after
    `refill_s`."""
    ordered = sorted(starts, key=lambda start: start.at)
    if not ordered:
        return Worth()
    seconds = max(_AT_LEAST_S, now - ordered[0].at)
    counts, worth_s = _by_rank(ordered, refill_s)
    workers = 0
    while workers < min(most, len(worth_s)) and worth_s[workers] >= seconds:
        workers += 1
    if workers == 0:
        return Worth()
    reason = (
        f"{counts[workers - 1]} of the starts in {seconds / 3600:.0f} h wanted {workers} at once"
    )
    return Worth(workers, reason)


def _by_rank(starts: list[Start], refill_s: float) -> tuple[list[int], list[float]]:
    """How many starts were of rank 1, 2, …, and what a worker is worth to them."""
    counts: list[int] = []
    worth_s: list[float] = []
    close: deque[float] = deque()
    for start in starts:
        while close and close[0] <= start.at - refill_s:
            close.popleft()
        close.append(start.at)
        rank = len(close)
        if rank > len(counts):
            counts.append(0)
            worth_s.append(0.0)
        counts[rank - 1] += 1
        worth_s[rank - 1] += start.worth_s
    return counts, worth_s
