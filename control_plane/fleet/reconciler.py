"""Makes the fleet have as many replicas of each revision as somebody decided."""

import asyncio
import secrets
from collections.abc import Callable

import structlog

from control_plane.fleet.crash_loop import CrashPolicy
from control_plane.fleet.departures import due_to_drain
from control_plane.fleet.machines import Machines
from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node
from control_plane.fleet.patience import Patience
from control_plane.fleet.placement import NoRoom, place
from control_plane.fleet.plan import Plan, Standing
from control_plane.fleet.provision import Provision
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from control_plane.fleet.tokens import ReplicaToken
from control_plane.fleet.vigil import Vigil
from control_plane.fleet.waiters import FailedListener, Waiters
from infra.clock import Clock
from infra.contracts.base import NodeId, ReplicaId, RevisionName
from infra.contracts.node import Failure
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import StageTiming
from infra.supervise import repeat

log = structlog.get_logger()

_LONGEST_HISTORY = 64

NoRoomListener = Callable[[RevisionName], None]
LostListener = Callable[[RevisionName], None]


class Reconciler:
    """Owns one plan a revision; every change of a plan or of the fleet converges it at once.

    Growing: a free place on a node gets the replica within the call that wished for it; where
    there is none, machines are asked for and the plan waits in line for room. What nodes had that
    are not back yet, after a take-over, is not started beside it.

    Shrinking: of more READY replicas than are wanted the youngest drain; they may take as long as
    a request may, so none is cut off. A replica that loads is let load, even if one is then
    drained at once: nobody who waits for it may be left with nothing. Only `abandon_loading` (its
    revision is deleted, or superseded with nobody waiting) ends it.
    """

    def __init__(
        self,
        fleet: Fleet,
        machines: Machines,
        *,
        clock: Clock,
        token: ReplicaToken,
        patience: Patience = Patience(),  # noqa: B008 - frozen value
        policy: CrashPolicy = CrashPolicy(),  # noqa: B008 - frozen value
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
        expected: Callable[[RevisionName], int] = lambda revision: 0,
    ) -> None:
        """`expected`: how many replicas nodes have that are not back yet (see `Census`)."""
        self._fleet = fleet
        self._machines = machines
        self._clock = clock
        self._token = token
        self._patience = patience
        self._policy = policy
        self._new_id = new_id
        self._expected = expected
        self._plans: dict[RevisionName, Plan] = {}
        self._blocked: dict[RevisionName, Plan] = {}  # in the order they began to wait
        self._vigil = Vigil(fleet, patience=patience, policy=policy, has_failed=self._has_failed)
        self._waiters = Waiters(fleet, machines, clock=clock, patience=patience)
        self._no_room_listeners: list[NoRoomListener] = []
        self._lost_listeners: list[LostListener] = []
        fleet.subscribe(self._replica_changed)
        fleet.subscribe_nodes(self._node_changed)
        machines.subscribe_refused(self._machine_refused)

    def subscribe_failed(self, listener: FailedListener) -> None:
        """Tells, soon after it is known, that requests waiting for a revision wait in vain.

        Which errors: see `Waiters`. They come from a callback of its own, never from inside
        `set_desired`.
        """
        self._waiters.subscribe(listener)

    def subscribe_lost(self, listener: LostListener) -> None:
        """Tells that a replica ended which nobody asked to, before another takes its place: who
        decides may want none any more."""
        self._lost_listeners.append(listener)

    def subscribe_no_room(self, listener: NoRoomListener) -> None:
        """Tells that a revision waits for room which others occupy."""
        self._no_room_listeners.append(listener)

    def set_desired(
        self, revision: Revision, replicas: int, reason: str, *, abandon_loading: bool = False
    ) -> None:
        """The revision should have so many replicas; what is missing starts before this returns.

        May be repeated.
        """
        plan = self._plans.get(revision.name)
        if plan is None:
            if replicas == 0 and not self._fleet.of_revision(revision.name):
                return
            plan = self._plans[revision.name] = Plan(revision, wanted_at=self._clock.now())
        if replicas > plan.desired:
            plan.wanted_at = self._clock.now()
        was_desired, plan.desired = plan.desired, replicas
        plan.reason, plan.abandon_loading = reason, abandon_loading
        if replicas != was_desired or not self._is_met(plan):
            self._converge(plan)

    def tell_if_hopeless(self, revision: RevisionName) -> None:
        """Tells the failed-listeners again, for a request that came after they were told."""
        if (plan := self._plans.get(revision)) is not None:
            self._waiters.tell_if_hopeless(plan)

    def desired(self, revision: RevisionName) -> int:
        """How many replicas a revision should have."""
        plan = self._plans.get(revision)
        return 0 if plan is None else plan.desired

    def standing(self, revision: RevisionName) -> Standing:
        """Where a revision stands; one never heard of wants nothing."""
        plan = self._plans.get(revision)
        return Standing() if plan is None else plan.standing(expected=self._expected(revision))

    def expect_less(self, revision: RevisionName) -> None:
        """What nodes had that were not back yet is told by them now, or given up: what is still
        missing starts."""
        plan, counts = self._plans.get(revision), self._fleet.counts(revision)
        if plan is not None and counts.ready + counts.loading < plan.desired:
            self._converge(plan)

    def forget(self, revision: RevisionName) -> None:
        """Drops the plan of a revision that is gone for good and has no replica left."""
        assert not self._fleet.of_revision(revision), "its replicas still need a plan"
        plan = self._plans.pop(revision, None)
        self._blocked.pop(revision, None)
        self._machines.forget(revision)
        if plan is not None:
            plan.cancel_retry()

    async def run(self) -> None:
        """Sweeps until cancelled."""
        await repeat(
            lambda: self.sweep(self._clock.now()),
            every_s=self._patience.sweep_s,
            on_failure="reconciler.sweep-failed",
        )

    def sweep(self, now: float) -> None:
        """Ends what hangs: drains past their deadline, climbs without progress, lost launches."""
        for replica in self._vigil.due(now=now):
            self._look_at(replica)
        self._machines.sweep(now)
        for node_id in tuple(self._fleet.leaving()):
            self._converge_on(node_id)
        self._retry_blocked()
        for plan in tuple(self._blocked.values()):
            self._waiters.tell_if_hopeless(plan)

    def _look_at(self, replica: Replica) -> None:
        plan = self._plans.get(replica.revision.name)
        if replica.ready_at is None or replica.state is not ReplicaState.READY:
            state, why = self._patience.end_of(replica)
            self._end(replica, state, why)
        elif plan is not None:
            plan.crash = plan.crash.after_health_since(replica.ready_at)

    def _has_failed(self, revision: RevisionName) -> bool:
        plan = self._plans.get(revision)
        return plan is not None and plan.crash.failures > 0

    def close(self) -> None:
        """Cancels pending retries."""
        for plan in self._plans.values():
            plan.cancel_retry()

    # -- converging ----------------------------------------------------------------------------

    def _converge(self, plan: Plan) -> None:
        """Converges until nothing is left to do, also when listeners of ours change the plan."""
        plan.is_stale = True
        if plan.is_converging:
            return
        plan.is_converging = True
        try:
            while plan.is_stale:
                plan.is_stale = False
                self._converge_once(plan)
        finally:
            plan.is_converging = False

    def _converge_once(self, plan: Plan) -> None:
        kept = self._kept(plan.name)
        surplus = len(kept) - plan.desired
        if surplus >= 0:
            self._unblock(plan)
        if surplus > 0:
            self._shrink(plan, kept, surplus)
        elif (missing := -surplus - self._expected(plan.name)) > 0:
            self._grow(plan, missing, is_probing=any(it.is_loading for it in kept))
        elif surplus < 0:
            self._unblock(plan)
        if self._fleet.leaving():
            self._empty_leaving(plan)

    def _empty_leaving(self, plan: Plan) -> None:
        """Replicas on nodes that will be taken away serve until others do, or it is time."""
        now, leaving = self._clock.now(), self._fleet.leaving()
        replicas = self._fleet.of_revision(plan.name)
        if plan.abandon_loading and plan.desired == 0:
            for replica in replicas:
                if replica.is_loading and replica.node_id in leaving:
                    self._end(replica, ReplicaState.STOPPED, plan.reason)
        num_ready = sum(it.state is ReplicaState.READY for it in self._kept(plan.name))
        for drain in due_to_drain(
            *(replicas, leaving),
            are_replaced=num_ready >= plan.desired,
            patience=self._patience,
            now=now,
        ):
            self._fleet.drain(
                drain.replica.replica_id,
                deadline_s=drain.deadline_s,
                now=now,
                detail=drain.detail,
            )

    def _converge_on(self, node_id: NodeId) -> None:
        for revision in {replica.revision.name for replica in self._fleet.on_node(node_id)}:
            if (plan := self._plans.get(revision)) is not None:
                self._converge(plan)

    def _is_met(self, plan: Plan) -> bool:
        if self._fleet.leaving():
            return False
        counts = self._fleet.counts(plan.name)
        return counts.ready + counts.loading == plan.desired and plan.name not in self._blocked

    def _kept(self, revision: RevisionName) -> list[Replica]:
        """Those that count: not what drains, nor what is on a node that will be taken away."""
        leaving = self._fleet.leaving()
        return [
            it
            for it in self._fleet.of_revision(revision)
            if it.is_serving_or_loading and it.node_id not in leaving
        ]

    def _shrink(self, plan: Plan, kept: list[Replica], surplus: int) -> None:
        if plan.abandon_loading:
            loading = [replica for replica in kept if replica.is_loading]
            for replica in loading[:surplus]:
                self._end(replica, ReplicaState.STOPPED, plan.reason)
        ready = [replica for replica in kept if replica.state is ReplicaState.READY]
        for replica in ready[plan.desired :][::-1]:
            self._fleet.drain(
                replica.replica_id,
                deadline_s=plan.revision.spec.timeouts.execution,
                now=self._clock.now(),
                detail=plan.reason,
            )

    def _grow(self, plan: Plan, missing: int, *, is_probing: bool) -> None:
        if plan.is_backing_off(now=self._clock.now()):
            self._retry_later(plan)
            return
        if plan.crash.is_open:  # half-open: one try, and no second one beside it
            missing = 0 if is_probing else 1
        need = need_of(plan.revision)
        for placed in range(missing):
            choice = place(need, self._fleet.rooms(wanted_by=plan.revision))
            if isinstance(choice, NoRoom):
                self._wait_for_room(plan, choice, missing - placed)
                return
            self._start(plan, choice)
        self._unblock(plan)

    def _start(self, plan: Plan, node_id: NodeId) -> None:
        now = self._clock.now()
        replica_id = ReplicaId(f"{plan.revision.model}-{plan.revision.number}-{self._new_id()}")
        plan.refused = None
        history, plan.legacy = plan.legacy, ()
        self._fleet.assign(
            Replica(
                replica_id=replica_id,
                revision=plan.revision,
                node_id=node_id,
                token=self._token(replica_id),
                wanted_at=min(plan.wanted_at, now),
                created_at=now,
                since=now,
                progressed_at=now,
                history=history,
                detail=plan.reason,
                provision=self._provision(node_id),
            )
        )

    def _provision(self, node_id: NodeId) -> Provision | None:
        node = self._fleet.node(node_id)
        if node is None:
            return None
        return Provision.of(node, answered_at=self._machines.answered_at(node_id))

    def _wait_for_room(self, plan: Plan, no_room: NoRoom, missing: int) -> None:
        plan.no_room = no_room
        if plan.name not in self._blocked:
            log.info(
                "replica.no-room",
                revision=plan.name,
                detail=no_room.reason,
                nearest=no_room.nearest,
            )
            self._blocked[plan.name] = plan
        self._machines.want(plan.name, need_of(plan.revision), missing)
        if no_room.may_come:
            self._ask_for_room(plan)

    def _unblock(self, plan: Plan) -> None:
        plan.no_room = None
        if self._blocked.pop(plan.name, None) is not None:
            self._machines.found_room(plan.name)

    def _ask_for_room(self, plan: Plan) -> None:
        """Not again before the next sweep: whoever makes room may be waiting for some itself."""
        now = self._clock.now()
        is_coming = self._fleet.total().draining > 0
        if is_coming or now < plan.asked_for_room_at + self._patience.sweep_s:
            return
        plan.asked_for_room_at = now
        for listener in self._no_room_listeners:
            listener(plan.name)

    def _machine_refused(self, revision: RevisionName) -> None:
        self.tell_if_hopeless(revision)

    # -- failures ------------------------------------------------------------------------------

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        if before is None:
            if after.is_adopted:
                self._keep_adopted(after)
            return
        plan = self._plans.get(after.revision.name)
        if plan is None:
            return
        if after.is_over:
            is_drained = before.state is ReplicaState.DRAINING
            was_asked = is_drained or after.state is ReplicaState.STOPPED  # by us, or by its node
            self._account(plan, before, after, was_asked=was_asked)
            plan.wanted_at = after.since
            plan.legacy = _legacy(before, after)
            for listener in () if was_asked else self._lost_listeners:
                listener(plan.name)
            self._converge(plan)
            self._retry_blocked()
        elif after.state is ReplicaState.READY and before.is_loading:
            plan.crash = plan.crash.half_closed()
            self._converge(plan)

    def _keep_adopted(self, replica: Replica) -> None:
        """What ran before the control plane is kept until somebody decides."""
        plan = self._plans.get(replica.revision.name)
        if plan is None:
            plan = self._plans[replica.revision.name] = Plan(
                replica.revision, wanted_at=replica.wanted_at
            )
            plan.reason = "was running before the control plane"
        plan.desired = max(plan.desired, len(self._kept(plan.name)))

    def _account(self, plan: Plan, before: Replica, after: Replica, *, was_asked: bool) -> None:
        """Judges a replica's end: health resets the account, an end nobody asked for adds to it.

        A replica that went with its node says nothing about its revision.
        """
        if before.ready_at is not None:
            is_healthy = after.since - before.ready_at >= self._policy.healthy_s
            if is_healthy or before.state is ReplicaState.DRAINING:
                plan.crash = plan.crash.after_health_since(before.ready_at)
        if not was_asked and self._fleet.node(after.node_id) is not None:
            self._count_failure(plan, after)

    def _count_failure(self, plan: Plan, replica: Replica) -> None:
        failure = replica.failure or Failure(
            code="replica-lost", detail=replica.detail or "it exited", is_permanent=False
        )
        plan.crash = plan.crash.after(
            failure, self._policy, node_id=replica.node_id, now=replica.since
        )
        log.warning(
            "replica.failed",
            replica=replica.replica_id,
            failures=plan.crash.failures,
            detail=failure.detail,
        )
        if plan.crash.is_open:
            self._waiters.tell_of_crashes(plan)

    def _retry_later(self, plan: Plan) -> None:
        plan.cancel_retry()
        wait_s = plan.crash.wait_s(self._clock.now())
        plan.retry = asyncio.get_running_loop().call_later(wait_s, self._retry, plan)

    def _retry(self, plan: Plan) -> None:
        plan.retry = None
        if self._plans.get(plan.name) is plan:
            self._converge(plan)

    # -- the rest of the fleet -----------------------------------------------------------------

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if before is None and after is not None:
            self._retry_blocked()
        elif before is not None and after is not None and before.leaving != after.leaving:
            self._converge_on(after.node_id)

    def _retry_blocked(self) -> None:
        for plan in tuple(self._blocked.values()):
            if plan.name in self._blocked:
                self._converge(plan)

    def _end(self, replica: Replica, state: ReplicaState, detail: str) -> None:
        self._fleet.end(replica.replica_id, state, now=self._clock.now(), detail=detail)


def _legacy(before: Replica, after: Replica) -> tuple[StageTiming, ...]:
    """What of an ended replica's climb its successor's waiters may have waited for."""
    if after.state is ReplicaState.STOPPED:
        return ()
    timings = after.legacy() if before.is_loading else after.timings()
    return timings[-_LONGEST_HISTORY:]
