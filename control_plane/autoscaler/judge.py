"""Makes the decision about one revision, has it carried out, and says when to look again."""

import math
from collections.abc import Callable, Set
from typing import Final

import structlog

from control_plane.autoscaler.decider import decide, least_replicas
from control_plane.autoscaler.decision import Decision, Observed, Tuning
from control_plane.autoscaler.demand import Demand, DemandSource
from control_plane.autoscaler.horizon import band_of, stands_until
from control_plane.autoscaler.tracked import DecisionRecord, Tracked
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.state import Fleet
from infra.agenda import Agenda
from infra.contracts.base import RevisionName

log = structlog.get_logger()

DecisionListener = Callable[[DecisionRecord], None]


# What a look at a revision costs beside one that leaves it as it is.
LOOKED: Final = 1
DECIDED: Final = 8
STARTED: Final = 100  # or ended


class Judge:
    """Owns the agenda: which revisions the next tick looks at, and when it is time for others.

    `ticked_at` is when the last tick was over: what had changed before, it looked at. What it
    found no time to decide is `put_off`, in the order in which it was.
    """

    def __init__(self, fleet: Fleet, reconciler: Reconciler, *, tuning: Tuning) -> None:
        self._fleet = fleet
        self._reconciler = reconciler
        self._tuning = tuning
        self._demand: DemandSource | None = None
        self._listeners: list[DecisionListener] = []
        self.agenda = Agenda[RevisionName]()
        self.ticked_at: float | None = None
        self.put_off: dict[RevisionName, None] = {}

    def watch(self, demand: DemandSource) -> None:
        """See Autoscaler.watch."""
        self._demand = demand

    def subscribe(self, listener: DecisionListener) -> None:
        """See Autoscaler.subscribe."""
        self._listeners.append(listener)

    def changed(self) -> Set[RevisionName]:
        """Of which revisions the demand changed since this was called last; they are on the
        agenda now."""
        changed: Set[RevisionName] = set() if self._demand is None else self._demand.changed()
        self.agenda.add_all(changed)
        return changed

    def read(self, revision: RevisionName) -> Demand | None:
        """What is asked of a revision; None where that is not known."""
        if self._demand is None:
            return None
        try:
            return self._demand.demand(revision)
        except Exception:
            log.exception("demand.unreadable", revision=revision)
            return None

    # -- looking -------------------------------------------------------------------------------

    def look(self, tracked: Tracked, *, now: float, is_late: bool = False) -> int:
        """Decides, unless it is certain to be as before; what that cost beside other looks.

        `is_late`: a decision that nobody waits for is put off.
        """
        if self.put_off:
            self.put_off.pop(tracked.name, None)
        demand = self.read(tracked.name)
        if tracked.band is None and self._is_asleep(tracked, demand, now=now):
            self._let_sleep(tracked)
            return LOOKED
        tracked.heed(demand, now=now, quiet_until=self.ticked_at)
        if demand is not None and tracked.stays(demand, now=now):
            self.agenda.add(tracked.name)  # its windows move on
            return LOOKED
        if is_late and (demand is None or demand.waiting == 0):
            self.put_off[tracked.name] = None
            return LOOKED
        return self._decide(tracked, demand, now=now)

    def _is_asleep(self, tracked: Tracked, demand: Demand | None, *, now: float) -> bool:
        """Most models, most of the time: nothing wanted, nothing there, nothing asked for."""
        if demand is None or demand.concurrency > 0 or self._reconciler.desired(tracked.name):
            return False
        if tracked.is_superseded or tracked.is_deleted or tracked.scaling.min > 0:
            return False
        if tracked.scheduled(now=now) or tracked.warm(now=now):
            return False
        return self._fleet.counts(tracked.name).all == 0

    def forget(self, revision: RevisionName) -> None:
        """Nothing is left of it to decide about."""
        self.agenda.forget(revision)
        self.put_off.pop(revision, None)

    def _let_sleep(self, tracked: Tracked) -> None:
        tracked.is_looked_after = False
        if tracked.scheduled_until < math.inf:
            self.agenda.add_at(tracked.name, tracked.scheduled_until)

    # -- deciding ------------------------------------------------------------------------------

    def decide(self, tracked: Tracked, *, now: float, is_contended: bool = False) -> None:
        """Decides now."""
        demand = self.read(tracked.name)
        tracked.heed(demand, now=now, quiet_until=self.ticked_at)
        self._decide(tracked, demand, now=now, is_contended=is_contended)

    def _decide(
        self, tracked: Tracked, demand: Demand | None, *, now: float, is_contended: bool = False
    ) -> int:
        self.put_off.pop(tracked.name, None)
        if tracked.is_deleted:
            return LOOKED
        observed = self._observe(tracked, demand, now=now, is_contended=is_contended)
        decision = decide(tracked.scaling, observed, now=now, tuning=self._tuning)
        tracked.panic = decision.panic
        if observed.desired == 0 and decision.replicas > 0 and demand is not None:
            tracked.restart(demand, now=now)
        is_news = decision.replicas != tracked.decided
        if is_news:
            record = DecisionRecord(now, tracked.name, observed, decision)
            tracked.remember(record)
            for listener in self._listeners:
                listener(record)
        self._look_again(tracked, observed, decision, now=now)
        self._reconciler.set_desired(
            tracked.revision,
            decision.replicas,
            decision.reason,
            abandon_loading=observed.is_superseded and decision.replicas == 0,
        )
        return DECIDED if decision.replicas == observed.desired else STARTED

    def _observe(
        self, tracked: Tracked, demand: Demand | None, *, now: float, is_contended: bool
    ) -> Observed:
        counts = self._fleet.counts(tracked.name)
        return Observed(
            desired=self._reconciler.desired(tracked.name),
            ready=counts.ready,
            loading=counts.loading,
            demand=demand,
            stable_mean=None if demand is None else tracked.stable_mean(demand, now=now),
            panic_mean=None if demand is None else tracked.panic_mean(demand, now=now),
            idle_since=tracked.idle_since(demand),
            grace_s=tracked.grace_s(),
            scheduled=tracked.scheduled(now=now),
            panic=tracked.panic,
            is_contended=is_contended,
            is_superseded=tracked.is_left(now=now),
            warm=tracked.warm(now=now),
        )

    def _look_again(
        self, tracked: Tracked, observed: Observed, decision: Decision, *, now: float
    ) -> None:
        """Puts the revision on the agenda for when its decision may be another."""
        scaling, tuning = tracked.scaling, self._tuning
        least = least_replicas(scaling, observed)
        demand = observed.demand
        tracked.is_looked_after = demand is not None and demand.is_finite
        tracked.band = None
        if not (scaling.schedule or observed.warm):
            tracked.band = band_of(scaling, observed, decision, least=least, now=now, tuning=tuning)
        again_at = stands_until(
            observed,
            decision,
            least=least,
            now=now,
            changed_at=tracked.changed_at,
            tuning=tuning,
        )
        again_at = min(again_at, tracked.scheduled_until)
        if observed.warm:
            again_at = min(again_at, tracked.warm_until)
        if again_at <= now:
            self.agenda.add(tracked.name)
        elif again_at < math.inf:
            self.agenda.add_at(tracked.name, again_at)
