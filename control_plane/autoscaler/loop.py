"""Looks at every revision's demand, decides, and tells the reconciler; at zero a poke is enough."""

import asyncio
import math
from collections.abc import Callable, Iterator
from datetime import tzinfo
from functools import partial
from itertools import count
from operator import attrgetter

import structlog

from control_plane.autoscaler.decider import Observed, Tuning, decide, least_replicas
from control_plane.autoscaler.demand import Demand, DemandSource
from control_plane.autoscaler.experience_store import MemoryExperienceStore
from control_plane.autoscaler.explain import Explanation, Situation, explain, of_all
from control_plane.autoscaler.horizon import band_of, stands_until
from control_plane.autoscaler.memory import Memory
from control_plane.autoscaler.standby_keeper import StandbyKeeper
from control_plane.autoscaler.tracked import DecisionRecord, Tracked
from control_plane.deployments.release import Release
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change
from control_plane.fleet.node import Node
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.replica import Replica
from control_plane.fleet.standby import StandbyLimits
from control_plane.fleet.state import Fleet
from infra.agenda import Agenda
from infra.clock import Clock
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.explanation import KeepAliveStatus
from infra.contracts.revision import Revision
from infra.errors import PlatformError

log = structlog.get_logger()

_SLICE = 250  # revisions: about 2 ms

DecisionListener = Callable[[DecisionRecord], None]


class Autoscaler:
    """Owns what is remembered of each revision between two decisions."""

    def __init__(
        self,
        deployments: Deployments,
        fleet: Fleet,
        reconciler: Reconciler,
        *,
        clock: Clock,
        is_leading: Callable[[], bool] = lambda: True,
        tuning: Tuning = Tuning(),  # noqa: B008 - frozen value
        tick_s: float = 1.0,
        standby: StandbyLimits = StandbyLimits(),  # noqa: B008 - frozen value
        memory: Memory | None = None,
        zone: tzinfo | None = None,
    ) -> None:
        self._deployments = deployments
        self._fleet = fleet
        self._reconciler = reconciler
        self._clock = clock
        self._is_leading = is_leading
        self._tuning = tuning
        self._tick_s = tick_s
        self._standby = StandbyKeeper(deployments, fleet, limits=standby)
        self._memory = memory or Memory(MemoryExperienceStore(), clock=clock)
        self._zone = zone
        self._demand: DemandSource | None = None
        self._revisions: dict[RevisionName, Tracked] = {}
        self._agenda = Agenda[RevisionName]()
        self._ticked_at: float | None = None  # None: every revision is to be looked at
        self._places = count()
        self._listeners: list[DecisionListener] = []
        deployments.subscribe(self._deployment_changed)
        fleet.subscribe(self._replica_changed)
        fleet.subscribe_nodes(self._node_changed)
        reconciler.subscribe_failed(self._replicas_failed)
        reconciler.subscribe_no_room(self._reclaim_room)

    def watch(self, demand: DemandSource) -> None:
        """Names who holds the requests; before that nothing is known and nothing shrinks."""
        self._demand = demand

    def subscribe(self, listener: DecisionListener) -> None:
        """Calls back at every decision that differs from the revision's last one."""
        self._listeners.append(listener)

    def poke(self, revision: RevisionName) -> None:
        """A request waits and nothing is ready: decides now.

        What has to start was sent to its node when this returns. Cheap to repeat: while a
        replica is ready or loads, the next tick is soon enough. While replicas crash or no
        machine can be had, the reconciler's failed-listeners are told soon after. A revision
        that is not known is ignored.
        """
        if self._fleet.ready(revision) or self._fleet.climb(revision) is not None:
            return
        self._decide_again(revision)
        self._reconciler.tell_if_hopeless(revision)

    def resign(self, reason: str) -> None:
        """Another decides from now on: what runs here ends as soon as nobody needs it."""
        for tracked in tuple(self._revisions.values()):
            self._reconciler.set_desired(tracked.revision, 0, reason, abandon_loading=True)

    async def recall(self) -> None:
        """Another decided until now: what it learnt and wrote is what we go on with."""
        await self._memory.load()
        for tracked in self._revisions.values():
            tracked.experience = self._memory.recall(tracked.revision.model)

    def explain(self, model: ModelName) -> Explanation | None:
        """What `platform ls` says of a model; None when it is not deployed."""
        release = self._deployments.release(model)
        if release is None:
            return None
        now = self._clock.now()
        return of_all([(share, self._explain(share.revision, now)) for share in release.shares])

    def _explain(self, revision: Revision, now: float) -> Explanation:
        demand = self._read(revision.name)
        tracked = self._revisions.get(revision.name)
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

    def warm(self, revision: Revision, replicas: int, *, until: float) -> Explanation:
        """Keeps so many replicas of a revision of a deployed model, in traffic or not, until then;
        how it stands. May be repeated."""
        now = self._clock.now()
        tracked = self._revisions.get(revision.name)
        if tracked is None:
            tracked = self._track(revision, self._deployments.release(revision.model))
            tracked.is_superseded = True  # as far as requests know
        tracked.keep_warm(replicas, until=until)
        self._decide(tracked, now=now)
        self._reconciler.tell_if_hopeless(revision.name)
        return self._explain(revision, now)

    def decisions(self, revision: RevisionName) -> tuple[DecisionRecord, ...]:
        """The revision's last decisions, oldest first; repetitions are left out."""
        tracked = self._revisions.get(revision)
        return () if tracked is None else tuple(tracked.records)

    def keep_alive(self, revision: RevisionName) -> KeepAliveStatus | None:
        """How long the revision's idle replicas are kept, and why; None for one not known."""
        tracked = self._revisions.get(revision)
        return None if tracked is None else tracked.keep_alive()

    async def run(self) -> None:
        """Ticks until cancelled."""
        while True:
            await asyncio.sleep(self._tick_s)
            try:
                for _ in self._ticking(self._clock.now()):
                    await asyncio.sleep(0)  # requests do not wait for all of it
            except Exception:
                log.exception("autoscaler.tick-failed")

    def tick(self, now: float) -> None:
        """Decides for every revision whose last decision may not be made again.

        That is one whose demand or replicas changed since the last tick, or whose windows still
        see that they did, or whose time has come: see `horizon`.
        """
        for _ in self._ticking(now):
            pass

    def _ticking(self, now: float) -> Iterator[None]:
        """A tick that can be left to do something else, every so many revisions."""
        if not self._is_leading():
            self._ticked_at = None
            return
        if self._ticked_at is None:
            self._look_everywhere()
        changed = () if self._demand is None else self._demand.changed()
        self._agenda.add_all(changed)
        for name in changed:
            if (tracked := self._revisions.get(name)) is not None:
                tracked.changed_at = now
        due = (self._revisions.get(name) for name in self._agenda.take(now=now))
        for number, tracked in enumerate(sorted(filter(None, due), key=attrgetter("place")), 1):
            try:
                self._look(tracked, now=now)
            except Exception:  # the others must not wait for it, and it is not to be forgotten
                log.exception("autoscaler.look-failed", revision=tracked.name)
                self._agenda.add(tracked.name)
            if number % _SLICE == 0:
                yield
        self._ticked_at = now
        self._standby.tick(now)

    def _look_everywhere(self) -> None:
        self._agenda.add_all(self._revisions)
        for tracked in self._revisions.values():
            tracked.band = None

    def _look(self, tracked: Tracked, *, now: float) -> None:
        """Decides, unless it is certain to be as before."""
        demand = self._read(tracked.name)
        if tracked.band is None and self._is_asleep(tracked, demand, now=now):
            self._let_sleep(tracked)
            return
        if demand is not None:
            tracked.heed(demand, now=now, quiet_until=self._ticked_at)
            if tracked.stays(demand, now=now):
                self._agenda.add(tracked.name)  # its windows move on
                return
        self._decide_on(tracked, demand, now=now)
        self._forget_if_gone(tracked)

    def _is_asleep(self, tracked: Tracked, demand: Demand | None, *, now: float) -> bool:
        """Most models, most of the time: nothing wanted, nothing there, nothing asked for."""
        if tracked.revision.spec.scaling.min > 0 or tracked.is_superseded or tracked.is_deleted:
            return False
        if self._fleet.counts(tracked.name).all or tracked.scheduled(now=now):
            return False
        if tracked.warm(now=now):
            return False
        is_quiet = demand is not None and demand.concurrency == 0
        return is_quiet and self._reconciler.desired(tracked.name) == 0

    def _let_sleep(self, tracked: Tracked) -> None:
        tracked.is_looked_after = False
        tracked.band = None
        if tracked.scheduled_until < math.inf:
            self._agenda.add_at(tracked.name, tracked.scheduled_until)

    # -- deciding ------------------------------------------------------------------------------

    def _decide(self, tracked: Tracked, *, now: float, is_contended: bool = False) -> None:
        demand = self._read(tracked.name)
        if demand is not None:
            tracked.heed(demand, now=now, quiet_until=self._ticked_at)
        self._decide_on(tracked, demand, now=now, is_contended=is_contended)

    def _decide_on(
        self, tracked: Tracked, demand: Demand | None, *, now: float, is_contended: bool = False
    ) -> None:
        if tracked.is_deleted:
            return
        observed = self._observe(tracked, demand, now=now, is_contended=is_contended)
        scaling = tracked.revision.spec.scaling
        decision = decide(scaling, observed, now=now, tuning=self._tuning)
        tracked.panic = decision.panic
        if observed.desired == 0 and decision.replicas > 0 and demand is not None:
            tracked.restart(demand, now=now)
        record = DecisionRecord(now, tracked.name, observed, decision)
        if tracked.remember(record):
            for listener in self._listeners:
                listener(record)
        self._look_again(tracked, record)
        is_abandoned = observed.is_superseded and decision.replicas == 0
        self._reconciler.set_desired(
            tracked.revision,
            decision.replicas,
            decision.reason,
            abandon_loading=is_abandoned,
        )

    def _look_again(self, tracked: Tracked, record: DecisionRecord) -> None:
        """Puts the revision on the agenda for when its decision may be another."""
        observed, scaling = record.observed, tracked.revision.spec.scaling
        tracked.is_looked_after = True
        tracked.band = None
        if not (scaling.schedule or observed.warm):
            least = least_replicas(scaling, observed)
            tracked.band = band_of(
                scaling, observed, record.decision, least=least, tuning=self._tuning
            )
        again_at = stands_until(
            observed,
            record.decision,
            now=record.at,
            changed_at=tracked.changed_at,
            tuning=self._tuning,
        )
        again_at = min(again_at, tracked.scheduled_until)
        if observed.warm:
            again_at = min(again_at, tracked.warm_until)
        if again_at <= record.at:
            self._agenda.add(tracked.name)
        elif again_at < math.inf:
            self._agenda.add_at(tracked.name, again_at)

    def _decide_again(self, revision: RevisionName) -> None:
        tracked = self._revisions.get(revision)
        if tracked is not None and self._is_leading():
            self._decide(tracked, now=self._clock.now())

    def _read(self, revision: RevisionName) -> Demand | None:
        if self._demand is None:
            return None
        try:
            return self._demand.demand(revision)
        except Exception:
            log.exception("demand.unreadable", revision=revision)
            return None

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

    # -- what happens elsewhere ----------------------------------------------------------------

    def _deployment_changed(self, change: Change) -> None:
        """A revision that left lives as long as requests wait for it; a deleted one does not."""
        concerned = [it for one in change.left if (it := self._revisions.get(one.name))]
        if change.after is None:
            concerned = [it for it in self._revisions.values() if it.revision.model == change.model]
            self._memory.forget(change.model)
        for tracked in concerned:
            tracked.is_superseded = change.after is not None
            tracked.is_deleted = change.after is None
        for revision in () if change.after is None else change.after.revisions:
            tracked = self._track(revision, change.before)
            tracked.is_superseded = tracked.is_deleted = False
            tracked.keep_warm(0, until=-math.inf)  # for this it was
            concerned.append(tracked)
        if not self._is_leading():
            self._standby.put_off()
            return  # the first tick in the lead looks at all
        now = self._clock.now()
        for tracked in concerned:
            self._settle(tracked, now=now)
        self._standby.size(now)

    def _track(self, revision: Revision, before: Release | None) -> Tracked:
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

    def _settle(self, tracked: Tracked, *, now: float) -> None:
        if tracked.is_deleted:
            self._reconciler.set_desired(tracked.revision, 0, "deleted", abandon_loading=True)
        else:
            self._decide(tracked, now=now)
        self._forget_if_gone(tracked)

    def _forget_if_gone(self, tracked: Tracked) -> None:
        if not (tracked.is_deleted or tracked.is_superseded):
            return
        demand = self._read(tracked.name)
        is_asked_for = tracked.is_superseded and demand is not None and demand.concurrency > 0
        is_asked_for |= not tracked.is_deleted and tracked.warm(now=self._clock.now()) > 0
        if is_asked_for or self._fleet.of_revision(tracked.name):
            self._agenda.add(tracked.name)
            return
        self._revisions.pop(tracked.name, None)
        self._agenda.forget(tracked.name)
        self._reconciler.forget(tracked.name)

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        tracked = self._revisions.get(after.revision.name)
        if tracked is not None:
            tracked.replica_changed(before, after, calm_s=self._tuning.stable_s)
            tracked.band = None
            self._agenda.add(tracked.name)

    def _replicas_failed(self, revision: RevisionName, _: PlatformError) -> None:
        """The waiters are being told; what then is left to want is decided after them."""
        asyncio.get_running_loop().call_soon(self._decide_again, revision)

    def _reclaim_room(self, revision: RevisionName) -> None:
        """Others wait for room: the revision that idles longest gives its own up at once, but not
        to one of its own model that is warmed to replace it."""
        asks = self._revisions.get(revision)
        spared = asks.revision.model if asks is not None and asks.is_superseded else None
        idle = [
            it
            for it in self._revisions.values()
            if it.revision.model != spared and self._is_idle(it, revision)
        ]
        if idle and self._is_leading():
            longest = min(idle, key=lambda it: it.idle_since(self._read(it.name)) or 0.0)
            self._decide(longest, now=self._clock.now(), is_contended=True)

    def _is_idle(self, tracked: Tracked, other_than: RevisionName) -> bool:
        demand = self._read(tracked.name)
        ready = len(self._fleet.ready(tracked.name))
        return (
            tracked.name != other_than
            and demand is not None
            and demand.concurrency == 0
            and self._fleet.climb(tracked.name) is None
            and ready > max(tracked.revision.spec.scaling.min, tracked.warm(now=self._clock.now()))
        )

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if before is None:
            self._standby.size(self._clock.now())
