"""Makes the fleet have as many replicas of each revision as somebody decided."""

import asyncio
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from control_plane.fleet.crash_loop import CrashLoop, CrashPolicy
from control_plane.fleet.machines import Machines
from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node
from control_plane.fleet.placement import NoRoom, place, room_on
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from control_plane.fleet.tokens import ReplicaToken
from infra.clock import Clock
from infra.contracts.base import NodeId, ReplicaId, RevisionName
from infra.contracts.node import Failure
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import StageTiming
from infra.errors import NoCapacity, PlatformError, ReplicaFailed
from infra.supervise import repeat

log = structlog.get_logger()

_LONGEST_HISTORY = 64

FailedListener = Callable[[RevisionName, PlatformError], None]
NoRoomListener = Callable[[RevisionName], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the reconciler puts up with what."""

    drain_margin_s: float = 5.0  # after its deadline a node ends a draining replica and says so
    accept_s: float = 30.0  # a node that reports takes what it is given
    stall_s: float = 600.0  # a loading replica without any progress is given up
    node_wait_s: float = 15.0  # without any node, waiters are told that there is none
    sweep_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a revision stands with its reconciler."""

    desired: int
    reason: str
    crash: CrashLoop
    blocked: str | None  # waits for room
    refused: str | None  # there was none to be had, and its waiters were told


class Reconciler:
    """Owns one plan a revision; every change of a plan or of the fleet converges it at once.

    Growing: a free place on a node gets the replica within the call that wished for it; where
    there is none, machines are asked for and the plan waits in line for room.

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
        patience: Patience = Patience(),
        policy: CrashPolicy = CrashPolicy(),  # noqa: B008 - frozen value
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        self._fleet = fleet
        self._machines = machines
        self._clock = clock
        self._token = token
        self._patience = patience
        self._policy = policy
        self._new_id = new_id
        self._plans: dict[RevisionName, _Plan] = {}
        self._blocked: dict[RevisionName, NoRoom] = {}  # in the order they began to wait
        self._failed_listeners: list[FailedListener] = []
        self._no_room_listeners: list[NoRoomListener] = []
        fleet.subscribe(self._replica_changed)
        fleet.subscribe_nodes(self._node_changed)
        machines.subscribe_refused(self._machine_refused)

    def subscribe_failed(self, listener: FailedListener) -> None:
        """Tells, soon after it is known, that requests waiting for a revision wait in vain.

        The error is a ReplicaFailed or a NoCapacity with `retry_after_s`. It comes from a
        callback of its own, never from inside `set_desired`.
        """
        self._failed_listeners.append(listener)

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
            plan = self._plans[revision.name] = _Plan(revision, wanted_at=self._clock.now())
        if replicas > plan.desired:
            plan.wanted_at = self._clock.now()
        was_desired, plan.desired = plan.desired, replicas
        plan.reason, plan.abandon_loading = reason, abandon_loading
        if replicas != was_desired or not self._is_met(plan):
            self._converge(plan)

    def tell_if_hopeless(self, revision: RevisionName) -> None:
        """Tells the failed-listeners again, for a request that came after they were told."""
        plan = self._plans.get(revision)
        if plan is not None and (error := self._hopeless(plan)) is not None:
            self._tell_failed(plan, error)

    def desired(self, revision: RevisionName) -> int:
        """How many replicas a revision should have."""
        plan = self._plans.get(revision)
        return 0 if plan is None else plan.desired

    def standing(self, revision: RevisionName) -> Standing:
        """Where a revision stands; one never heard of wants nothing."""
        plan = self._plans.get(revision)
        if plan is None:
            return Standing(0, "", CrashLoop(), None, None)
        blocked = self._blocked.get(revision)
        return Standing(
            plan.desired,
            plan.reason,
            plan.crash,
            None if blocked is None else blocked.reason,
            plan.refused,
        )

    def forget(self, revision: RevisionName) -> None:
        """Drops the plan of a revision that is gone for good and has no replica left."""
        assert not self._fleet.of_revision(revision), "its replicas still need a plan"
        plan = self._plans.pop(revision, None)
        self._blocked.pop(revision, None)
        self._machines.forget(revision)
        if plan is not None and plan.retry is not None:
            plan.retry.cancel()

    async def run(self) -> None:
        """Sweeps until cancelled."""
        await repeat(
            lambda: self.sweep(self._clock.now()),
            every_s=self._patience.sweep_s,
            on_failure="reconciler.sweep-failed",
        )

    def sweep(self, now: float) -> None:
        """Ends what hangs: drains past their deadline, climbs without progress, lost launches."""
        for replica in self._fleet.replicas():
            if replica.state is ReplicaState.DRAINING:
                deadline = replica.since + replica.drain_deadline_s + self._patience.drain_margin_s
                if now > deadline:
                    self._end(replica, ReplicaState.STOPPED, "was killed at its drain deadline")
            elif replica.is_loading and now - replica.progressed_at > self._stall_s(replica):
                self._end(
                    replica,
                    ReplicaState.FAILED,
                    f"made no progress for {self._stall_s(replica):g} s",
                )
            elif replica.ready_at is not None and now - replica.ready_at >= self._policy.healthy_s:
                self._forgive(replica.revision.name, replica.ready_at)
        self._machines.sweep(now)
        self._retry_blocked()
        for revision in tuple(self._blocked):
            self.tell_if_hopeless(revision)

    def _stall_s(self, replica: Replica) -> float:
        is_taken = replica.state is not ReplicaState.ASSIGNED
        return self._patience.stall_s if is_taken else self._patience.accept_s

    def _forgive(self, revision: RevisionName, ready_at: float) -> None:
        plan = self._plans.get(revision)
        if plan is not None:
            plan.crash = plan.crash.after_health_since(ready_at)

    def close(self) -> None:
        """Cancels pending retries."""
        for plan in self._plans.values():
            if plan.retry is not None:
                plan.retry.cancel()
                plan.retry = None

    # -- converging ----------------------------------------------------------------------------

    def _converge(self, plan: "_Plan") -> None:
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

    def _converge_once(self, plan: "_Plan") -> None:
        kept = self._kept(plan.name)
        surplus = len(kept) - plan.desired
        if surplus >= 0:
            self._blocked.pop(plan.name, None)
        if surplus > 0:
            self._shrink(plan, kept, surplus)
        elif surplus < 0:
            self._grow(plan, -surplus, is_probing=any(it.is_loading for it in kept))

    def _is_met(self, plan: "_Plan") -> bool:
        counts = self._fleet.counts(plan.name)
        return counts.ready + counts.loading == plan.desired and plan.name not in self._blocked

    def _kept(self, revision: RevisionName) -> list[Replica]:
        return [it for it in self._fleet.of_revision(revision) if it.is_serving_or_loading]

    def _shrink(self, plan: "_Plan", kept: list[Replica], surplus: int) -> None:
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

    def _grow(self, plan: "_Plan", missing: int, *, is_probing: bool) -> None:
        if self._is_backing_off(plan):
            self._retry_later(plan)
            return
        if plan.crash.is_open:  # half-open: one try, and no second one beside it
            missing = 0 if is_probing else 1
        need = need_of(plan.revision)
        for placed in range(missing):
            nodes = self._fleet.nodes()
            rooms = [
                room_on(node, self._fleet.on_node(node.node_id), wanted_by=plan.name)
                for node in nodes
            ]
            choice = place(need, rooms)
            if isinstance(choice, NoRoom):
                self._wait_for_room(plan, choice, missing - placed)
                return
            self._start(plan, choice)
        self._blocked.pop(plan.name, None)

    def _start(self, plan: "_Plan", node_id: NodeId) -> None:
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
            )
        )

    def _wait_for_room(self, plan: "_Plan", no_room: NoRoom, missing: int) -> None:
        self._blocked[plan.name] = no_room
        self._machines.want(plan.name, need_of(plan.revision), missing)
        if no_room.may_come:
            self._ask_for_room(plan)

    def _ask_for_room(self, plan: "_Plan") -> None:
        """Not again before the next sweep: whoever makes room may be waiting for some itself."""
        now = self._clock.now()
        is_coming = any(it.state is ReplicaState.DRAINING for it in self._fleet.replicas())
        if is_coming or now < plan.asked_for_room_at + self._patience.sweep_s:
            return
        plan.asked_for_room_at = now
        for listener in self._no_room_listeners:
            listener(plan.name)

    def _machine_refused(self, revision: RevisionName) -> None:
        self.tell_if_hopeless(revision)

    def _hopeless(self, plan: "_Plan") -> PlatformError | None:
        """Why requests for a revision wait in vain now; None while there is hope."""
        if plan.crash.is_open and self._is_backing_off(plan):
            return self._crash_error(plan)
        no_room, refusal = self._blocked.get(plan.name), self._machines.refusal(plan.name)
        if plan.desired == 0 or no_room is None or refusal is None:
            return None
        if no_room.may_come or self._machines.are_coming():
            return None
        waited_s = self._clock.now() - plan.wanted_at
        if not self._fleet.nodes() and waited_s < self._patience.node_wait_s:
            return None
        plan.refused = f"{no_room.reason}; {refusal.error.detail}"
        return NoCapacity(
            plan.refused,
            revision=plan.name,
            retry_after_s=max(1.0, refusal.retry_at - self._clock.now()),
        )

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
            self._account(plan, before, after)
            plan.wanted_at = after.since
            plan.legacy = _legacy(before, after)
            self._converge(plan)
            self._retry_blocked()
        elif after.state is ReplicaState.READY and before.is_loading:
            plan.crash = plan.crash.half_closed()
            self._converge(plan)

    def _keep_adopted(self, replica: Replica) -> None:
        """What ran before the control plane is kept until somebody decides."""
        plan = self._plans.get(replica.revision.name)
        if plan is None:
            plan = self._plans[replica.revision.name] = _Plan(
                replica.revision, wanted_at=replica.wanted_at
            )
            plan.reason = "was running before the control plane"
        plan.desired = max(plan.desired, len(self._kept(plan.name)))

    def _account(self, plan: "_Plan", before: Replica, after: Replica) -> None:
        """Judges a replica's end: health resets the account, an end nobody asked for adds to it.

        A replica that went with its node says nothing about its revision.
        """
        is_drained = before.state is ReplicaState.DRAINING
        was_asked = is_drained or after.state is ReplicaState.STOPPED  # by us, or its node stops
        if before.ready_at is not None:
            is_healthy = after.since - before.ready_at >= self._policy.healthy_s
            if is_healthy or is_drained:
                plan.crash = plan.crash.after_health_since(before.ready_at)
        if not was_asked and self._fleet.node(after.node_id) is not None:
            self._count_failure(plan, after)

    def _count_failure(self, plan: "_Plan", replica: Replica) -> None:
        failure = replica.failure or Failure(
            code="replica-lost", detail=replica.detail or "it exited", is_permanent=False
        )
        plan.crash = plan.crash.after(failure, self._policy, now=replica.since)
        log.warning(
            "replica.failed",
            replica=replica.replica_id,
            failures=plan.crash.failures,
            detail=failure.detail,
        )
        if plan.crash.is_open:
            self._tell_failed(plan, self._crash_error(plan))

    def _is_backing_off(self, plan: "_Plan") -> bool:
        return plan.crash.wait_s(self._clock.now()) > 0

    def _retry_later(self, plan: "_Plan") -> None:
        if plan.retry is not None:
            plan.retry.cancel()
        wait_s = plan.crash.wait_s(self._clock.now())
        plan.retry = asyncio.get_running_loop().call_later(wait_s, self._retry, plan)

    def _retry(self, plan: "_Plan") -> None:
        plan.retry = None
        if self._plans.get(plan.name) is plan:
            self._converge(plan)

    def _crash_error(self, plan: "_Plan") -> PlatformError:
        crash = plan.crash
        return ReplicaFailed(
            f"replicas of {plan.name} cannot start: {crash.detail}",
            revision=plan.name,
            cause=crash.code,
            failures=crash.failures,
            is_permanent=crash.is_permanent,
            retry_after_s=crash.wait_s(self._clock.now()),
        )

    def _tell_failed(self, plan: "_Plan", error: PlatformError) -> None:
        asyncio.get_running_loop().call_soon(self._call_failed_listeners, plan.name, error)

    def _call_failed_listeners(self, revision: RevisionName, error: PlatformError) -> None:
        """Requests do not wait in vain while a replica serves them or may yet."""
        is_loading = self._fleet.climb(revision) is not None
        if self._fleet.ready(revision) or (is_loading and not error.facts.get("is_permanent")):
            return
        for listener in self._failed_listeners:
            listener(revision, error)

    # -- the rest of the fleet -----------------------------------------------------------------

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if before is None and after is not None:
            self._retry_blocked()

    def _retry_blocked(self) -> None:
        for revision in tuple(self._blocked):
            if (plan := self._plans.get(revision)) is not None:
                self._converge(plan)

    def _end(self, replica: Replica, state: ReplicaState, detail: str) -> None:
        self._fleet.end(replica.replica_id, state, now=self._clock.now(), detail=detail)


def _legacy(before: Replica, after: Replica) -> tuple[StageTiming, ...]:
    """What of an ended replica's climb its successor's waiters may have waited for."""
    if after.state is ReplicaState.STOPPED:
        return ()
    timings = after.legacy() if before.is_loading else after.timings()
    return timings[-_LONGEST_HISTORY:]


class _Plan:
    """What a revision should have and how that went so far; owned by the reconciler."""

    def __init__(self, revision: Revision, *, wanted_at: float) -> None:
        self.revision = revision
        self.desired = 0
        self.reason = ""
        self.refused: str | None = None
        self.abandon_loading = False
        self.is_converging = False
        self.is_stale = False
        self.wanted_at = wanted_at
        self.asked_for_room_at = -math.inf
        self.crash = CrashLoop()
        self.legacy: tuple[StageTiming, ...] = ()
        self.retry: asyncio.TimerHandle | None = None

    @property
    def name(self) -> RevisionName:
        return self.revision.name
