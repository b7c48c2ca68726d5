"""A table of demand meters, as the adapter of the DemandSource port."""

from collections.abc import Set
from functools import partial

from control_plane.autoscaler.demand import Demand, DemandMeter
from infra.clock import Clock
from infra.contracts.base import RevisionName


class DemandTable:
    """A DemandSource made of meters, one a revision that was ever asked for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._meters: dict[RevisionName, DemandMeter] = {}
        self._changed: set[RevisionName] = set()

    def meter(self, revision: RevisionName) -> DemandMeter:
        """The meter of a revision, made at its first use."""
        meter = self._meters.get(revision)
        if meter is None:
            meter = self._meters[revision] = DemandMeter(partial(self._changed.add, revision))
        return meter

    def demand(self, revision: RevisionName) -> Demand | None:
        return self.meter(revision).read(now=self._clock.now())

    def changed(self) -> Set[RevisionName]:
        changed = self._changed.copy()
        self._changed.clear()
        return changed

    def forget(self, revision: RevisionName) -> None:
        """Drops the meter of a revision that is gone and has no request left."""
        self._meters.pop(revision, None)
        self._changed.add(revision)
