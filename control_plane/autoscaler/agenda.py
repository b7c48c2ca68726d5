"""Which revisions a tick looks at: those that something happened to, those whose time has come."""

from collections.abc import Iterable
from heapq import heappop, heappush

from infra.contracts.base import RevisionName


class Agenda:
    """A revision is on it once, at the earliest time that somebody named."""

    def __init__(self) -> None:
        self._now: set[RevisionName] = set()
        self._times: dict[RevisionName, float] = {}
        self._heap: list[tuple[float, RevisionName]] = []  # what `_times` does not say is void

    def add(self, revision: RevisionName) -> None:
        """The next tick looks at it."""
        self._now.add(revision)

    def add_all(self, revisions: Iterable[RevisionName]) -> None:
        """The next tick looks at them."""
        self._now.update(revisions)

    def add_at(self, revision: RevisionName, at: float) -> None:
        """The first tick from then on looks at it; replaces the time it had."""
        if self._times.get(revision) != at:
            self._times[revision] = at
            heappush(self._heap, (at, revision))

    def forget(self, revision: RevisionName) -> None:
        """Takes it off."""
        self._now.discard(revision)
        self._times.pop(revision, None)

    def take(self, *, now: float) -> set[RevisionName]:
        """What is due; it is off the agenda until it is added again."""
        due, self._now = self._now, set()
        while self._heap and self._heap[0][0] <= now:
            at, revision = heappop(self._heap)
            if self._times.get(revision) == at:
                due.add(revision)
        for revision in due:
            self._times.pop(revision, None)
        return due
