"""The owner of a node's processes: hears what should be and what is, and has the plan done."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from infra.contracts.base import ReplicaId
from infra.contracts.image import ImagePool
from infra.contracts.node import DesiredState, Gpu, ReplicaReport, Sleeper
from infra.contracts.revision import ReplicaState
from infra.contracts.worker_link import Asleep, FromWorker, Hello, Progress
from worker.node.clock import NodeClock
from worker.node.gpu_table import GpuTable
from worker.node.hands import Hands
from worker.node.launcher import Exit, Launcher
from worker.node.logs import ReplicaLogs
from worker.node.plan import (
    Action,
    Await,
    Claim,
    DrainReplica,
    EndSleep,
    Forget,
    Kill,
    Launch,
    NodeView,
    Origin,
    Refuse,
    Settle,
    StartZygote,
    StopZygote,
    WorkerId,
    plan,
)
from worker.node.reading_ahead import ReadingAhead
from worker.node.refill import Refill
from worker.node.replica import Replica
from worker.node.sleepers import Sleeping
from worker.node.tables import Tables, Urgency, Worker
from worker.node.zygote_keeper import ZygoteKeeper

log = structlog.get_logger()

LAUNCHES = 3  # processes a replica may lose before its start; then it has failed


class Agent:
    """Single owner of a node's workers and replicas; every method belongs to the event loop."""

    def __init__(self, launcher: Launcher, logs: ReplicaLogs, clock: NodeClock) -> None:
        self._launcher = launcher
        self._logs = logs
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._desired = DesiredState(version=0, standby=0, replicas=())
        self._tables = Tables()
        self._ahead = ReadingAhead()
        self._zygote = ZygoteKeeper(launcher, self._advance)
        self._refill = Refill(self._advance)
        self._hands = Hands(launcher, logs, clock, self._tables, self._refill)
        launcher.listen(self)

    # What the control plane wants and hears -------------------------------------------------

    def apply(self, desired: DesiredState) -> None:
        """The desired state from now on."""
        self._desired = desired
        self._launcher.pin({pin.image: pin.index for pin in desired.pins})
        self._refill.keep_only({pool.image for pool in desired.pools})
        self._advance()
        if self._ahead.expect(desired.prepare):
            self._prepare_standby()

    def serve_at(self, host: str) -> None:
        """The address that replicas listen on from now on; those that run stay where they are."""
        self._hands.host = host

    def subscribe(self, on_news: Callable[[Urgency], None]) -> None:
        """Calls back after every change that the control plane should hear of."""
        self._tables.on_news = on_news

    def standby_ready(self) -> int:
        """Parked workers that nobody has claimed, of the node's own image or of none."""
        return self._tables.standby_ready()

    def pools_ready(self) -> tuple[ImagePool, ...]:
        """The same of other images than the node's own."""
        return self._tables.pools_ready()

    def sleepers(self) -> tuple[Sleeper, ...]:
        """Workers that wait on the weights rung."""
        return self._tables.sleepers()

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU, with who owns it and what is wrong with it."""
        return self._tables.told_gpus()

    def take_gpu_changes(self) -> tuple[Gpu, ...] | None:
        """The same where anything changed since it was asked for last, else None."""
        return self._tables.take_gpu_changes()

    @property
    def has_replicas(self) -> bool:
        """Whether any has not ended."""
        return any(not replica.has_ended for replica in self._tables.replicas.values())

    def reports(self) -> tuple[ReplicaReport, ...]:
        """The whole truth of every replica; nothing is left unreported."""
        return self._tables.reports()

    def take_changes(self) -> tuple[ReplicaReport, ...]:
        """Reports of the replicas that changed since they were last asked for."""
        return self._tables.take_changes()

    async def close(self) -> None:
        """Ends every process; replicas are then STOPPED."""
        self._desired = DesiredState(version=0, standby=0, replicas=())
        replicas = self._tables.replicas
        for replica_id, replica in replicas.items():
            replicas[replica_id] = replica.unwanted()
        for worker_id in tuple(self._tables.workers):
            self._hands.kill(worker_id)  # so that nobody takes its end for a failure
        await self._launcher.close()

    # What the GPUs' driver says ---------------------------------------------------------------

    @property
    def gpu_table(self) -> GpuTable:
        return self._tables.gpus

    def on_gpus(self, gpus: tuple[Gpu, ...], *, after: int) -> None:
        """A reading that began when the table had counted `after` returns."""
        if self._tables.gpus.heard(gpus, after=after):
            self._tables.on_news("soon")
        for worker_id, worker in self._tables.workers.items():
            for gpu in self._tables.gpus.of(worker_id):
                if gpu.trouble is not None:
                    self._hurt(worker_id, worker, gpu)
        self._advance()

    def _hurt(self, worker_id: WorkerId, worker: Worker, gpu: Gpu) -> None:
        """A GPU of the worker is in trouble: who sleeps ends, and who lost it cannot go on."""
        if worker.sleeping is not None:
            worker.sleeping = replace(worker.sleeping, is_hurt=True)
        if worker.replica_id is None or worker.is_dying or not gpu.is_lost:
            return
        replica = self._tables.replicas[worker.replica_id]
        if not replica.has_ended:
            replica = replica.lost(f"{gpu.gpu_id} was lost under it: {gpu.trouble}")
            log.info("replica.moved", **replica.facts())
            self._tables.put(replica, "now")
        self._hands.kill(worker_id)

    # What processes say (the launcher's listener) --------------------------------------------

    def on_message(self, worker_id: WorkerId, message: FromWorker) -> None:
        worker = self._tables.workers.get(worker_id)
        if worker is None or worker.is_dying:
            return
        worker.heard_at = self._loop.time()
        if isinstance(message, Hello):
            self._parked(worker_id, worker)
        elif worker.replica_id is None:
            return
        elif isinstance(message, Asleep):
            self._fell_asleep(worker_id, worker, message)
        else:
            self._climbed(worker.replica_id, message)

    def on_exit(self, worker_id: WorkerId, end: Exit) -> None:
        worker = self._tables.workers.pop(worker_id, None)
        if worker is None:
            return
        self._tables.gpus.give_back(worker_id)
        if worker.replica_id is not None:
            self._lost_process(worker.replica_id, worker, end)
        elif worker.sleeping is not None:
            log.info("sleeper.gone", revision=worker.sleeping.told.revision, end=str(end))
            self._tables.on_news("soon")
        elif not worker.is_dying:
            lived_s = self._loop.time() - worker.launched_at
            self._refill.lost_standby(end, lived_s=lived_s, image=worker.image)
            self._tables.on_news("soon")
        self._advance()

    def on_zygote_up(self) -> None:
        self._zygote.is_up()

    def on_zygote_exit(self, end: Exit) -> None:
        if self._zygote.has_ended(end):
            self._advance()

    def _parked(self, worker_id: WorkerId, worker: Worker) -> None:
        worker.is_parked = True
        log.debug("worker.parked", worker=worker_id, origin=worker.origin.value)
        if worker.replica_id is not None:
            self._hands.start(worker_id, self._tables.replicas[worker.replica_id].assignment)
        else:
            self._hands.prepare(worker_id, self._ahead.sources)
            self._tables.on_news("soon")

    def _climbed(self, replica_id: ReplicaId, message: FromWorker) -> None:
        before = self._tables.replicas[replica_id]
        replica = before.heard(message)
        self._tables.put(replica, "soon" if replica.state is before.state else "now")
        if isinstance(message, Progress) or replica.state is before.state:
            return
        log.info("replica.moved", **replica.facts())
        if before.is_climbing:
            self._refill.climb_succeeded()
            self._climb_ended()
        is_ready = replica.state is ReplicaState.READY
        if is_ready and self._ahead.remember(replica.assignment.source):
            self._prepare_standby()

    def _fell_asleep(self, worker_id: WorkerId, worker: Worker, message: Asleep) -> None:
        """Its replica has stopped; the process waits for another of the same model."""
        assert worker.replica_id is not None
        replica = self._tables.replicas[worker.replica_id].heard(message)
        assignment, now = replica.assignment, self._clock.now()
        told = Sleeper(
            revision=assignment.revision,
            memory_bytes=message.memory_bytes,
            since=now,
            until=now + assignment.sleep_s,
        )
        worker.replica_id = None
        gpus = self._tables.gpus.of(worker_id)
        worker.sleeping = Sleeping(worker_id, assignment.model, assignment.recipe, told, gpus)
        self._logs.close(assignment.replica_id)
        log.info("replica.asleep", mib=message.memory_bytes >> 20, **replica.facts())
        self._tables.put(replica, "now")
        self._loop.call_later(assignment.sleep_s, self._slept_its_time, worker, told)
        self._advance()

    def _slept_its_time(self, worker: Worker, told: Sleeper) -> None:
        if worker.sleeping is not None and worker.sleeping.told is told:
            worker.sleeping = replace(worker.sleeping, is_over=True)
            self._advance()

    def _lost_process(self, replica_id: ReplicaId, worker: Worker, end: Exit) -> None:
        last_line = self._logs.close(replica_id)
        before = self._tables.replicas.get(replica_id)
        if before is None:  # it had failed, and the control plane did not wait for this
            return
        never_began = worker.origin is Origin.FORK and not worker.is_parked
        if never_began and not before.is_unwanted and before.launches < LAUNCHES:
            self._tables.replicas[replica_id] = before.unclaimed()
            return
        detail = f"{end}; last log line: {last_line[:500]}" if last_line else str(end)
        replica = before.process_ended(is_clean=end.status == 0, detail=detail, code=end.code)
        if replica.state is not before.state:
            log.info("replica.moved", end=str(end), **replica.facts())
        self._tables.put(replica, "now")
        if before.is_climbing:
            self._climb_ended()

    # From what is to what should be -----------------------------------------------------------

    def _advance(self) -> None:
        for action in plan(self._desired, self._view()):
            self._do(action)

    def _view(self) -> NodeView:
        return NodeView(
            self._tables.worker_views(),
            self._tables.replica_views(),
            self._zygote.state,
            self._refill.is_allowed,
            self._tables.sleeping(),
            self._tables.gpus_at_hand(),
            self._launcher.runs_images,
            self._refill.resting,
        )

    def _do(self, action: Action) -> None:
        match action:
            case Claim(worker_id, assignment, gpus):
                self._hands.claim(worker_id, assignment, gpus)
            case Launch(origin, assignment, gpus, image):
                self._hands.launch(origin, assignment, gpus, image)
            case Await(assignment):
                self._hands.let_wait(assignment)
            case DrainReplica(replica_id, deadline_s, may_sleep):
                self._hands.drain(replica_id, deadline_s, may_sleep=may_sleep)
            case Kill(worker_id):
                self._hands.kill(worker_id)
            case EndSleep(worker_id, why):
                log.info("sleeper.ended", worker=worker_id, why=why)
                self._hands.kill(worker_id)
            case Settle(assignment):
                settled = Replica(assignment, self._clock.now()).stopped()
                self._tables.put(settled, "now")
            case Refuse(assignment):
                self._hands.refuse(assignment)
            case Forget(replica_id):
                del self._tables.replicas[replica_id]
            case StartZygote():
                self._zygote.start()
            case StopZygote():
                self._zygote.stop()

    def _prepare_standby(self) -> None:
        for worker_id, worker in self._tables.workers.items():
            if worker.is_standby:
                self._hands.prepare(worker_id, self._ahead.sources)

    def _climb_ended(self) -> None:
        """Unless another replica still climbs, the pool may soon be refilled."""
        if not self._tables.is_climbing():
            self._refill.climbs_ended()
