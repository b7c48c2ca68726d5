"""Decides what a node does next, from what it should be and what it is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from infra.contracts.base import GpuId, ReplicaId
from infra.contracts.node import DesiredState, ReplicaAssignment
from infra.contracts.revision import ReplicaState
from infra.gpus import Wish
from worker.node.allotment import Allotment, GpusAtHand
from worker.node.sleepers import Sleeping, to_end, wakeable

WorkerId = int

_ENDS = frozenset({ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.LOST})


class Origin(StrEnum):
    """How a worker process comes to be."""

    FORK = "fork"
    SPAWN = "spawn"


class ZygoteState(StrEnum):
    """What the fork server is doing; RESTING waits out a crash."""

    ABSENT = "absent"
    BOOTING = "booting"
    UP = "up"
    RESTING = "resting"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A live worker that nobody has asked to die; unclaimed while `replica_id` is None.

    `image` is what its container runs; None: the node's own, or none at all.
    """

    worker_id: WorkerId
    origin: Origin
    is_parked: bool
    replica_id: ReplicaId | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica this node has heard of; `worker_id` is None while it waits for a process."""

    state: ReplicaState
    worker_id: WorkerId | None = None


@dataclass(frozen=True, slots=True)
class NodeView:
    """The node as it is. `may_refill` is False while a climb should have the cores to itself.

    Who sleeps is not among the workers. Of `resting` images nobody is parked for now, since that
    has just failed.
    """

    workers: tuple[WorkerView, ...] = ()
    replicas: Mapping[ReplicaId, ReplicaView] | None = None
    zygote: ZygoteState = ZygoteState.ABSENT
    may_refill: bool = True
    sleeping: tuple[Sleeping, ...] = ()
    gpus: GpusAtHand = GpusAtHand()  # noqa: RUF009 - frozen value
    runs_images: bool = False
    resting: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Claim:
    """The worker becomes this replica as soon as it is parked; a sleeper has its GPUs already."""

    worker_id: WorkerId
    assignment: ReplicaAssignment
    gpus: tuple[GpuId, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """A new worker; for `assignment`, or unclaimed for the standby pool of an image."""

    origin: Origin
    assignment: ReplicaAssignment | None
    gpus: tuple[GpuId, ...] = ()
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Await:
    """The replica waits for GPUs that others own, or that are in trouble."""

    assignment: ReplicaAssignment


@dataclass(frozen=True, slots=True)
class DrainReplica:
    """Finish what runs, then sleep or exit."""

    replica_id: ReplicaId
    deadline_s: float
    may_sleep: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker at once."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class EndSleep:
    """End a sleeping worker; `why` is for the log."""

    worker_id: WorkerId
    why: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Say STOPPED of a replica that is to drain and has no process here."""

    assignment: ReplicaAssignment


@dataclass(frozen=True, slots=True)
class Refuse:
    """Say FAILED of a replica of an image, which workers that are processes cannot run."""

    assignment: ReplicaAssignment


@dataclass(frozen=True, slots=True)
class Forget:
    """The control plane no longer lists a replica that has ended."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class StartZygote:
    """Standby is wanted and there is no fork server."""


@dataclass(frozen=True, slots=True)
class StopZygote:
    """No standby is wanted: give the memory back."""


Action = (
    Claim
    | Launch
    | Await
    | DrainReplica
    | Kill
    | EndSleep
    | Settle
    | Refuse
    | Forget
    | StartZygote
    | StopZygote
)


def plan(desired: DesiredState, node: NodeView) -> tuple[Action, ...]:
    """What brings the node closer to the desired state; nothing when it is there.

    1. Unlisted: a replica that the control plane does not list is killed, or forgotten if ended.
    2. Listed to drain: READY drains, not yet READY is killed, unknown is reported STOPPED.
    3. Listed to run without a process: wake a worker that sleeps with the same model. For others,
       once there are GPUs for it: claim the most advanced unclaimed worker of its image, else
       launch. One of several processes is always launched, since ranks are forked with it. One
       that cannot be run here is refused.
    4. Sleepers: end those whose GPUs are needed, and those that may not sleep any longer.
    5. Standby, of each image: launch what is missing, not beside a climb; kill what is too much,
       least advanced first.
    6. Zygote: there while standby is wanted.
    """
    replicas = node.replicas or {}
    start_zygote = desired.standby > 0 and node.zygote is ZygoteState.ABSENT
    origin = Origin.FORK if start_zygote or _can_fork(node.zygote) else Origin.SPAWN
    unclaimed = _by_advance(worker for worker in node.workers if worker.replica_id is None)
    sleeping = list(node.sleeping)

    actions: list[Action] = [StartZygote()] if start_zygote else []
    actions += _end_unlisted(desired, replicas)
    starting: list[ReplicaAssignment] = []
    for assignment in desired.replicas:
        replica = replicas.get(assignment.replica_id)
        if assignment.desired == "drain":
            actions += _drain(assignment, replica, desired)
        elif replica is None or _waits_for_a_process(replica):
            if (sleeper := wakeable(sleeping, assignment)) is not None:
                sleeping.remove(sleeper)
                actions.append(Claim(sleeper.worker_id, assignment))
            else:
                starting.append(assignment)
    allotment = Allotment(node.gpus, sleeping)
    for assignment in starting:
        if assignment.image is not None and not node.runs_images:
            actions.append(Refuse(assignment))
            continue
        gpus = allotment.take(_wish(assignment))
        if gpus is None:
            actions.append(Await(assignment))
        elif (worker := _claimable(unclaimed, assignment)) is not None:
            unclaimed.remove(worker)
            actions.append(Claim(worker.worker_id, assignment, gpus))
        else:
            actions.append(Launch(origin, assignment, gpus, assignment.image))
    actions += _end_sleepers(allotment.giving_way, sleeping, desired)
    is_climb_ahead = any(isinstance(action, Claim | Launch) for action in actions)
    may_refill = node.may_refill and not is_climb_ahead
    actions += _size_standby(desired, unclaimed, node, origin, may_refill=may_refill)
    if desired.standby == 0 and _can_fork(node.zygote) and not _forks_pending(node, actions):
        actions.append(StopZygote())
    return tuple(actions)


def _can_fork(zygote: ZygoteState) -> bool:
    return zygote in {ZygoteState.BOOTING, ZygoteState.UP}


def _by_advance(workers: Iterable[WorkerView]) -> list[WorkerView]:
    """Most advanced first: parked, then forking, then spawning; the oldest of equals first."""
    return sorted(
        workers,
        key=lambda worker: (not worker.is_parked, worker.origin is Origin.SPAWN, worker.worker_id),
    )


def _end_unlisted(desired: DesiredState, replicas: Mapping[ReplicaId, ReplicaView]) -> list[Action]:
    listed = {assignment.replica_id for assignment in desired.replicas}
    actions: list[Action] = []
    for replica_id, replica in replicas.items():
        if replica_id in listed:
            continue
        if replica.worker_id is not None:
            actions.append(Kill(replica.worker_id))
        elif replica.state in _ENDS or _waits_for_a_process(replica):
            actions.append(Forget(replica_id))
    return actions


def _drain(
    assignment: ReplicaAssignment, replica: ReplicaView | None, desired: DesiredState
) -> list[Action]:
    if replica is None or _waits_for_a_process(replica):
        return [Settle(assignment)]
    if replica.state is ReplicaState.READY:
        may_sleep = assignment.sleep_s > 0 and assignment.revision in desired.sleep.revisions
        return [
            DrainReplica(assignment.replica_id, assignment.drain_deadline_s, may_sleep=may_sleep)
        ]
    if replica.state is ReplicaState.STARTING and replica.worker_id is not None:
        return [Kill(replica.worker_id)]
    return []


def _wish(assignment: ReplicaAssignment) -> Wish:
    resources = assignment.resources
    return Wish(resources.gpus, resources.gpu, assignment.gpu_memory_bytes)


def _end_sleepers(
    giving_way: list[Sleeping], sleeping: list[Sleeping], desired: DesiredState
) -> list[Action]:
    others = [one for one in sleeping if one not in giving_way]
    ended = [(one, "its GPUs are needed") for one in giving_way]
    return [EndSleep(one.worker_id, why) for one, why in (*ended, *to_end(others, desired.sleep))]


def _waits_for_a_process(replica: ReplicaView) -> bool:
    return replica.state is ReplicaState.ASSIGNED


def _claimable(unclaimed: list[WorkerView], assignment: ReplicaAssignment) -> WorkerView | None:
    if assignment.engine.tensor_parallel > 1:
        return None
    return next((worker for worker in unclaimed if worker.image == assignment.image), None)


def _size_standby(
    desired: DesiredState,
    unclaimed: list[WorkerView],
    node: NodeView,
    origin: Origin,
    *,
    may_refill: bool,
) -> list[Action]:
    """The node's own image is here when the fork server is up; others come with their first one."""
    wanted: dict[str | None, int] = {None: desired.standby}
    wanted |= {pool.image: pool.workers for pool in desired.pools}
    wanted |= {worker.image: 0 for worker in unclaimed if worker.image not in wanted}
    actions: list[Action] = []
    for image, number in wanted.items():
        there = [worker for worker in unclaimed if worker.image == image]
        actions += [Kill(worker.worker_id) for worker in reversed(there[number:])]
        may_launch = origin is Origin.FORK if image is None else image not in node.resting
        if may_refill and may_launch:
            how = Origin.FORK if image is None else Origin.SPAWN
            actions += [Launch(how, None, image=image)] * (number - len(there))
    return actions


def _forks_pending(node: NodeView, actions: list[Action]) -> bool:
    """A replica's worker is still to come from the zygote."""
    return any(
        worker.origin is Origin.FORK and not worker.is_parked and worker.replica_id is not None
        for worker in node.workers
    ) or any(isinstance(action, Launch) and action.origin is Origin.FORK for action in actions)
