"""Does to processes what the plan says: launches, claims, drains and kills workers."""

import asyncio

import structlog

from infra.contracts.base import GpuId, ReplicaId
from infra.contracts.node import Failure, ReplicaAssignment
from infra.contracts.revision import ReplicaState, ResolvedSource
from infra.contracts.stage import Rung
from infra.contracts.worker_link import Drain, Prepare, Start
from infra.errors import NoCapacity
from worker.node.clock import NodeClock
from worker.node.launcher import Launcher
from worker.node.logs import ReplicaLogs
from worker.node.plan import Origin, WorkerId
from worker.node.refill import Refill
from worker.node.replica import Replica
from worker.node.tables import Tables, Worker

log = structlog.get_logger()

LAUNCH_TIMEOUT_S = 120.0  # from launch, or the last that was heard of it, to hello
GPU_PATIENCE_S = 20.0  # for GPUs that should be free; then the replica has failed
DRAIN_GRACE_S = 2.0  # past the deadline, before a draining worker is killed


class Hands:
    """Belongs to the event loop; changes the tables as it changes the processes."""

    def __init__(
        self,
        launcher: Launcher,
        logs: ReplicaLogs,
        clock: NodeClock,
        tables: Tables,
        refill: Refill,
    ) -> None:
        self._launcher = launcher
        self._logs = logs
        self._clock = clock
        self._tables = tables
        self._refill = refill
        self.host = "127.0.0.1"  # where replicas listen
        self._loop = asyncio.get_running_loop()
        self._launched = 0
        self._waits: dict[ReplicaId, asyncio.TimerHandle] = {}  # for GPUs

    def launch(
        self,
        origin: Origin,
        assignment: ReplicaAssignment | None,
        gpus: tuple[GpuId, ...],
        image: str | None = None,
    ) -> None:
        """Starts a worker; for a replica, or unclaimed for the pool of an image."""
        self._launched += 1
        worker_id = self._launched
        self._tables.workers[worker_id] = Worker(origin, self._loop.time(), image)
        if assignment is not None:
            self.claim(worker_id, assignment, gpus)
        ranks = 0 if assignment is None else assignment.engine.tensor_parallel - 1
        match origin:
            case Origin.FORK:
                self._launcher.fork(worker_id, ranks=ranks, image=image)
            case Origin.SPAWN:
                name = ReplicaId(f"worker-{worker_id}")
                owner = name if assignment is None else assignment.replica_id
                path = self._logs.path(owner)
                self._launcher.spawn(worker_id, path, ranks=ranks, image=image)
        self._loop.call_later(LAUNCH_TIMEOUT_S, self._give_up_launch, worker_id)

    def claim(
        self, worker_id: WorkerId, assignment: ReplicaAssignment, gpus: tuple[GpuId, ...]
    ) -> None:
        """The worker becomes this replica, at once or as soon as it is parked, and owns `gpus`."""
        worker = self._tables.workers[worker_id]
        self._tables.gpus.take(worker_id, gpus)
        if (wait := self._waits.pop(assignment.replica_id, None)) is not None:
            wait.cancel()
        worker.replica_id = assignment.replica_id
        self._logs.open(assignment.replica_id, assignment.revision)
        waiting = self._tables.replicas.get(assignment.replica_id)
        replica = waiting or Replica(assignment, self._clock.now())
        if worker.sleeping is not None:
            worker.sleeping = None
            self.start(worker_id, assignment)
            replica = replica.claimed(worker_id, Rung.WEIGHTS, "asleep")
        elif worker.is_parked:
            self.start(worker_id, assignment)
            replica = replica.claimed(worker_id, Rung.RUNTIME, "parked")
        else:
            began = self._launcher.climbs_from(worker.origin, image=worker.image)
            replica = replica.claimed(worker_id, *began)
        self._refill.climb_began()
        log.info("replica.moved", **replica.facts())
        self._tables.put(replica, "soon")

    def start(self, worker_id: WorkerId, assignment: ReplicaAssignment) -> None:
        """Tells a parked worker what it is from now on."""
        self._launcher.send(
            worker_id,
            Start(
                assignment=assignment,
                clock=self._clock.reading(),
                host=self.host,
                log_path=str(self._logs.path(assignment.replica_id)),
                gpus=self._tables.gpus.owned_by(worker_id),
            ),
        )

    def let_wait(self, assignment: ReplicaAssignment) -> None:
        """The replica waits for GPUs, not for ever; may be repeated."""
        replica_id = assignment.replica_id
        if replica_id in self._waits:
            return
        waiting = self._tables.replicas.get(replica_id) or Replica(assignment, self._clock.now())
        log.info("replica.waits-for-gpus", **waiting.facts())
        self._waits[replica_id] = self._loop.call_later(
            GPU_PATIENCE_S, self._give_up_waiting, replica_id
        )
        self._tables.put(waiting, "soon")

    def refuse(self, assignment: ReplicaAssignment) -> None:
        """Nobody here can run the replica's image."""
        failure = Failure(
            code=NoCapacity.slug,
            detail=f"this node runs workers as processes, and cannot run {assignment.image}",
            is_permanent=False,
            hint="run its workers in containers: PLATFORM_NODE_RUNTIME=container",
        )
        failed = Replica(assignment, self._clock.now()).failed(failure)
        log.info("replica.moved", **failed.facts())
        self._tables.put(failed, "now")

    def prepare(self, worker_id: WorkerId, sources: tuple[ResolvedSource, ...]) -> None:
        """Lets a parked worker read ahead."""
        if sources:
            self._launcher.send(worker_id, Prepare(sources=sources))

    def drain(self, replica_id: ReplicaId, deadline_s: float, *, may_sleep: bool) -> None:
        """Lets a replica finish what runs; its worker is killed when that takes too long."""
        replica = self._tables.replicas[replica_id]
        assert replica.worker_id is not None
        drain = Drain(deadline_s=deadline_s, may_sleep=may_sleep)
        self._launcher.send(replica.worker_id, drain)
        self._loop.call_later(
            deadline_s + DRAIN_GRACE_S, self._kill_undrained, replica.worker_id, replica_id
        )
        self._tables.put(replica.draining(), "now")

    def kill(self, worker_id: WorkerId) -> None:
        """Ends a worker at once; nothing for one that is gone."""
        worker = self._tables.workers.get(worker_id)
        if worker is None:
            return
        worker.is_dying = True
        if (replica_id := worker.replica_id) is not None:
            replicas = self._tables.replicas
            replicas[replica_id] = replicas[replica_id].unwanted()
        self._launcher.kill(worker_id)

    def _give_up_waiting(self, replica_id: ReplicaId) -> None:
        del self._waits[replica_id]
        replica = self._tables.replicas.get(replica_id)
        if replica is None or replica.state is not ReplicaState.ASSIGNED:
            return
        detail = (
            f"its GPUs did not come free in {GPU_PATIENCE_S:g} s: {self._tables.who_has_gpus()}"
        )
        failure = Failure(code=NoCapacity.slug, detail=detail, is_permanent=False)
        failed = replica.failed(failure)
        log.info("replica.moved", **failed.facts())
        self._tables.put(failed, "now")

    def _give_up_launch(self, worker_id: WorkerId) -> None:
        """Unless it has given a sign of life since: an image may take long to come."""
        worker = self._tables.workers.get(worker_id)
        if worker is None or worker.is_parked:
            return
        left_s = worker.heard_at + LAUNCH_TIMEOUT_S - self._loop.time()
        if left_s > 0:
            self._loop.call_later(left_s, self._give_up_launch, worker_id)
            return
        log.warning("worker.launch-timeout", worker=worker_id)
        self._launcher.kill(worker_id)

    def _kill_undrained(self, worker_id: WorkerId, replica_id: ReplicaId) -> None:
        """Unless the worker was killed, or has left the replica behind: asleep, or another one."""
        worker = self._tables.workers.get(worker_id)
        if worker is not None and worker.replica_id == replica_id and not worker.is_dying:
            self.kill(worker_id)
