"""Looks at revisions when something may have changed, and at zero as soon as it is poked."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import tzinfo

import structlog

from control_plane.autoscaler.decision import Tuning
from control_plane.autoscaler.demand import DemandSource
from control_plane.autoscaler.experience_store import MemoryExperienceStore
from control_plane.autoscaler.explain import Explanation
from control_plane.autoscaler.judge import DecisionListener, Judge
from control_plane.autoscaler.memory import Memory
from control_plane.autoscaler.roster import Roster
from control_plane.autoscaler.rounds import Rounds
from control_plane.autoscaler.standby_keeper import StandbyKeeper
from control_plane.autoscaler.status import Status
from control_plane.autoscaler.tracked import DecisionRecord, Tracked
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change
from control_plane.fleet.node import Node
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.replica import Replica
from control_plane.fleet.standby import StandbyLimits
from control_plane.fleet.state import Fleet
from infra.clock import Clock
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.explanation import KeepAliveStatus
from infra.contracts.revision import Revision
from infra.errors import PlatformError

log = structlog.get_logger()

_PASSES = 20  # a tick's time has room for: decisions that were put off do not wait for the next


class Autoscaler:
    """Ticks once a second, and hears in between what does not wait for that."""

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
        is_settled: Callable[[str], bool] = lambda image: True,
    ) -> None:
        """`is_settled`: whether workers may be parked with an image."""
        self._deployments = deployments
        self._fleet = fleet
        self._reconciler = reconciler
        self._clock = clock
        self._is_leading = is_leading
        self._tuning = tuning
        self._tick_s = tick_s
        self._standby = StandbyKeeper(deployments, fleet, limits=standby, is_settled=is_settled)
        self._roster = Roster(memory or Memory(MemoryExperienceStore(), clock=clock), tuning=tuning)
        self._judge = Judge(fleet, reconciler, tuning=tuning)
        self._rounds = Rounds(
            *(self._roster, self._judge, self._standby),
            tuning=tuning,
            has_looked=self._forget_if_gone,
        )
        self._status = Status(self._roster, self._judge, fleet, reconciler, zone=zone)
        deployments.subscribe(self._deployment_changed)
        fleet.subscribe(self._replica_changed)
        fleet.subscribe_nodes(self._node_changed)
        reconciler.subscribe_failed(self._replicas_failed)
        reconciler.subscribe_lost(self._decide_again)
        reconciler.subscribe_no_room(self._reclaim_room)

    def watch(self, demand: DemandSource) -> None:
        """Names who holds the requests; before that nothing is known and nothing shrinks."""
        self._judge.watch(demand)

    def subscribe(self, listener: DecisionListener) -> None:
        """Calls back at every decision that differs from the revision's last one."""
        self._judge.subscribe(listener)

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
        for tracked in self._roster:
            self._reconciler.set_desired(tracked.revision, 0, reason, abandon_loading=True)

    async def recall(self) -> None:
        """Another decided until now: what it learnt and wrote is what we go on with."""
        await self._roster.recall()

    def warm(self, revision: Revision, replicas: int, *, until: float) -> Explanation:
        """Keeps so many replicas of a revision of a deployed model, in traffic or not, until then;
        how it stands. May be repeated."""
        now = self._clock.now()
        tracked = self._roster.get(revision.name)
        if tracked is None:
            tracked = self._roster.track(revision, self._deployments.release(revision.model))
            tracked.is_superseded = True  # as far as requests know
        tracked.keep_warm(replicas, until=until)
        self._judge.decide(tracked, now=now)
        self._reconciler.tell_if_hopeless(revision.name)
        return self._status.of_revision(revision, now=now)

    # -- what is said of it --------------------------------------------------------------------

    def explain(self, model: ModelName) -> Explanation | None:
        """What `platform ls` says of a model; None when it is not deployed."""
        release = self._deployments.release(model)
        return None if release is None else self._status.of_release(release, now=self._clock.now())

    def explain_revision(self, revision: RevisionName) -> Explanation | None:
        """The same of one revision; None when it is not in traffic."""
        live = self._deployments.live(revision)
        return None if live is None else self._status.of_revision(live, now=self._clock.now())

    def decisions(self, revision: RevisionName) -> tuple[DecisionRecord, ...]:
        """The revision's last decisions, oldest first; repetitions are left out."""
        return self._status.decisions(revision)

    def keep_alive(self, revision: RevisionName) -> KeepAliveStatus | None:
        """How long the revision's idle replicas are kept, and why; None for one not known."""
        return self._status.keep_alive(revision)

    # -- ticks ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ticks until cancelled."""
        while True:
            await self._catch_up()
            await self._in_turns(self.ticking(self._clock.now()))

    async def _catch_up(self) -> None:
        """Until the next tick is due, makes the decisions that were put off."""
        for passed in range(_PASSES):
            if not self.is_behind:
                await asyncio.sleep(self._tick_s * (1 - passed / _PASSES))
                return
            await asyncio.sleep(self._tick_s / _PASSES)
            await self._in_turns(self.catching_up(self._clock.now()))

    async def _in_turns(self, work: Iterator[None]) -> None:
        try:
            for _ in work:
                await asyncio.sleep(0)  # requests do not wait for all of it
        except Exception:
            log.exception("autoscaler.tick-failed")

    def ticking(self, now: float) -> Iterator[None]:
        """A tick, which can be left to do something else every so often: decides for every
        revision whose last decision may not be made again.

        That is one whose demand or replicas changed since the last tick, or whose windows still
        see that they did, or whose time has come: see `horizon`. When that is the case of many at
        once (after a take-over, at the end of its panic), decisions that no request waits for are
        put off as soon as the tick has done its work: `catching_up` goes on with them.
        """
        if self._is_leading():
            return self._rounds.ticking(now)
        self._rounds.interrupt()
        return iter(())

    @property
    def is_behind(self) -> bool:
        """Whether decisions were put off; `run` makes them well before the next tick."""
        return self._rounds.is_behind

    def catching_up(self, now: float) -> Iterator[None]:
        """Goes on where a tick's work was done, until so much is done again; can be left as that
        can."""
        return self._rounds.catching_up(now) if self._is_leading() else iter(())

    def image_settled(self) -> None:
        """Workers may be parked with an image from now on."""
        if self._is_leading():
            self._standby.size(self._clock.now())

    def look_everywhere(self) -> None:
        """The next tick decides for every revision, as if it had not done so before."""
        self._rounds.look_everywhere()

    def _decide_again(self, revision: RevisionName) -> None:
        tracked = self._roster.get(revision)
        if tracked is not None and self._is_leading():
            self._judge.decide(tracked, now=self._clock.now())

    # -- what happens elsewhere ----------------------------------------------------------------

    def _deployment_changed(self, change: Change) -> None:
        concerned = self._roster.redeploy(change)
        self._standby.redeployed()
        if not self._is_leading():
            return  # the first tick in the lead looks at all
        now = self._clock.now()
        for tracked in concerned:
            self._settle(tracked, now=now)
        self._standby.size(now)

    def _settle(self, tracked: Tracked, *, now: float) -> None:
        if tracked.is_deleted:
            self._reconciler.set_desired(tracked.revision, 0, "deleted", abandon_loading=True)
        else:
            self._judge.decide(tracked, now=now)
        self._forget_if_gone(tracked)

    def _forget_if_gone(self, tracked: Tracked) -> None:
        if not (tracked.is_deleted or tracked.is_superseded):
            return
        demand = self._judge.read(tracked.name)
        is_asked_for = tracked.is_superseded and demand is not None and demand.concurrency > 0
        is_asked_for |= not tracked.is_deleted and tracked.warm(now=self._clock.now()) > 0
        if is_asked_for or self._fleet.of_revision(tracked.name):
            self._judge.agenda.add(tracked.name)
            return
        self._roster.drop(tracked.name)
        self._judge.forget(tracked.name)
        self._reconciler.forget(tracked.name)

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        tracked = self._roster.get(after.revision.name)
        if tracked is not None:
            tracked.replica_changed(before, after, calm_s=self._tuning.stable_s)
            tracked.band = None
            self._judge.agenda.add(tracked.name)

    def _replicas_failed(self, revision: RevisionName, _: PlatformError) -> None:
        """The waiters are being told; what then is left to want is decided after them."""
        asyncio.get_running_loop().call_soon(self._decide_again, revision)

    def _reclaim_room(self, revision: RevisionName) -> None:
        """Others wait for room: the revision that idles longest gives its own up at once, but not
        to one of its own model that is warmed to replace it."""
        asks = self._roster.get(revision)
        spared = asks.revision.model if asks is not None and asks.is_superseded else None
        idle = [
            it for it in self._roster if it.revision.model != spared and self._is_idle(it, revision)
        ]
        if idle and self._is_leading():
            longest = min(idle, key=lambda it: it.idle_since(self._judge.read(it.name)) or 0.0)
            self._judge.decide(longest, now=self._clock.now(), is_contended=True)

    def _is_idle(self, tracked: Tracked, other_than: RevisionName) -> bool:
        demand = self._judge.read(tracked.name)
        ready = len(self._fleet.ready(tracked.name))
        return (
            tracked.name != other_than
            and demand is not None
            and demand.concurrency == 0
            and self._fleet.climb(tracked.name) is None
            and ready > max(tracked.scaling.min, tracked.warm(now=self._clock.now()))
        )

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if before is None:
            self._standby.size(self._clock.now())
