"""The revisions that are scaled, in the order in which they came."""

import math
from collections.abc import Collection, Iterator, Set
from functools import partial
from itertools import count
from operator import attrgetter

from control_plane.autoscaler.decision import Tuning
from control_plane.autoscaler.memory import Memory
from control_plane.autoscaler.tracked import Tracked
from control_plane.deployments.release import Release
from control_plane.deployments.store import Change
from infra.contracts.base import RevisionName
from infra.contracts.revision import Revision

_MANY = 8  # of so many one: to pass by the others is quicker than to sort


class Roster:
    """Owns what is remembered of each revision, from its deployment until nothing is left of it."""

    def __init__(self, memory: Memory, *, tuning: Tuning) -> None:
        self._memory = memory
        self._tuning = tuning
        self._revisions: dict[RevisionName, Tracked] = {}
        self._places = count()

    def __iter__(self) -> Iterator[Tracked]:
        return iter(tuple(self._revisions.values()))

    def names(self) -> Collection[RevisionName]:
        return self._revisions.keys()

    def get(self, revision: RevisionName) -> Tracked | None:
        return self._revisions.get(revision)

    def these(self, names: Set[RevisionName]) -> list[Tracked]:
        """Those of them that are known, in order: decisions about several are made in that."""
        if len(names) * _MANY > len(self._revisions):
            return [tracked for name, tracked in self._revisions.items() if name in names]
        known = [tracked for name in names if (tracked := self._revisions.get(name)) is not None]
        return sorted(known, key=attrgetter("place"))

    def track(self, revision: Revision, before: Release | None) -> Tracked:
        """A new revision begins with what was learnt of the one that most requests went to."""
        memory = self._memory
        tracked = self._revisions.get(revision.name)
        if tracked is None:
            old = None if before is None else self._revisions.get(before.leading.name)
            tracked = self._revisions[revision.name] = Tracked(
                revision,
                place=next(self._places),
                tuning=self._tuning,
                experience=memory.recall(revision.model) if old is None else old.experience.copy(),
                learnt=partial(memory.note, revision.model),
            )
        return tracked

    def redeploy(self, change: Change) -> list[Tracked]:
        """What is in traffic has changed; whom that concerns.

        A revision that left lives as long as requests wait for it; a deleted one does not.
        """
        concerned = [it for one in change.left if (it := self._revisions.get(one.name))]
        if change.after is None:
            concerned = [it for it in self._revisions.values() if it.revision.model == change.model]
            self._memory.forget(change.model)
        for tracked in concerned:
            tracked.is_superseded = change.after is not None
            tracked.is_deleted = change.after is None
        for revision in () if change.after is None else change.after.revisions:
            tracked = self.track(revision, change.before)
            tracked.is_superseded = tracked.is_deleted = False
            tracked.keep_warm(0, until=-math.inf)  # for this it was
            concerned.append(tracked)
        return concerned

    async def recall(self) -> None:
        """Another decided until now: what it learnt and wrote is what we go on with."""
        await self._memory.load()
        for tracked in self._revisions.values():
            tracked.experience = self._memory.recall(tracked.revision.model)

    def drop(self, revision: RevisionName) -> None:
        """Nothing of it is left."""
        self._revisions.pop(revision, None)
