"""Sequences that wait to be computed, in the order of their turns."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from worker.engine.fair_share import FairShare
from worker.engine.sequence import Sequence


class WaitingLine:
    """A line for each tenant, in order of priority, then of arrival.

    Next is the head that is most urgent; of several, that of the tenant who had least.
    """

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._lines: dict[str, list[Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def add(self, sequence: Sequence) -> None:
        insort(self._lines.setdefault(sequence.tenant, []), sequence, key=Sequence.rank)

    def remove(self, sequence: Sequence) -> None:
        line = self._lines[sequence.tenant]
        place = bisect_left(line, sequence.rank(), key=Sequence.rank)
        assert line[place] is sequence
        del line[place]
        if not line:
            del self._lines[sequence.tenant]

    def head(self) -> Sequence | None:
        heads = (line[0] for line in self._lines.values())
        return min(heads, key=self.turn, default=None)

    def num_claiming(self, claim: tuple[int, int]) -> int:
        """Sequences whose claim is at least as good."""
        priority, tokens = claim
        count = 0
        for tenant, line in self._lines.items():
            after = (priority + (self._share.tokens(tenant) <= tokens), 0)
            count += bisect_left(line, after, key=Sequence.rank)
        return count

    def claim(self, sequence: Sequence) -> tuple[int, int]:
        """Lower goes first: its priority, then what its tenant had."""
        return sequence.priority, self._share.tokens(sequence.tenant)

    def turn(self, sequence: Sequence) -> tuple[int, int, int]:
        """Sequences that need much computed go in this order, waiting or running."""
        return *self.claim(sequence), sequence.arrival
