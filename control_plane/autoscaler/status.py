"""What is said of models and revisions to who asks."""

from datetime import tzinfo

from control_plane.autoscaler.explain import Explanation, Situation, explain, of_all
from control_plane.autoscaler.judge import Judge
from control_plane.autoscaler.roster import Roster
from control_plane.autoscaler.tracked import DecisionRecord
from control_plane.deployments.release import Release
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.state import Fleet
from infra.contracts.base import RevisionName
from infra.contracts.explanation import KeepAliveStatus
from infra.contracts.revision import Revision


class Status:
    """Looks things up, and changes nothing."""

    def __init__(
        self,
        roster: Roster,
        judge: Judge,
        fleet: Fleet,
        reconciler: Reconciler,
        *,
        zone: tzinfo | None,
    ) -> None:
        self._roster = roster
        self._judge = judge
        self._fleet = fleet
        self._reconciler = reconciler
        self._zone = zone

    def of_release(self, release: Release, *, now: float) -> Explanation:
        """Where a model stands, as a whole."""
        return of_all([(it, self.of_revision(it.revision, now=now)) for it in release.shares])

    def of_revision(self, revision: Revision, *, now: float) -> Explanation:
        """Where a revision stands."""
        demand = self._judge.read(revision.name)
        tracked = self._roster.get(revision.name)
        situation = Situation(
            standing=self._reconciler.standing(revision.name),
            replicas=self._fleet.of_revision(revision.name),
            climb=self._fleet.climb(revision.name),
            demand=demand,
            grace_s=0.0 if tracked is None else tracked.grace_s(),
            keeps=revision.spec.scaling.min,
            scheduled=0 if tracked is None else tracked.scheduled(now=now),
            idle_since=None if tracked is None else tracked.idle_since(demand),
            sleepers=self._fleet.sleepers(revision.name),
            warm=0 if tracked is None else tracked.warm(now=now),
        )
        return explain(situation, now=now, zone=self._zone)

    def decisions(self, revision: RevisionName) -> tuple[DecisionRecord, ...]:
        """See Autoscaler.decisions."""
        tracked = self._roster.get(revision)
        return () if tracked is None else tuple(tracked.records)

    def keep_alive(self, revision: RevisionName) -> KeepAliveStatus | None:
        """See Autoscaler.keep_alive."""
        tracked = self._roster.get(revision)
        return None if tracked is None else tracked.keep_alive()
