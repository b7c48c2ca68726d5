"""The node's tables: what runs, what should run, and the moves from one to the other."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from infra.backoff import Backoff
from infra.contracts.base import ReplicaId
from infra.contracts.node import DesiredState, ReplicaAssignment, ReplicaReport, Sleeper
from infra.contracts.revision import ReplicaState, ResolvedSource
from infra.contracts.stage import Rung
from infra.contracts.worker_link import (
    Asleep,
    Drain,
    FromWorker,
    Hello,
    Prepare,
    Progress,
    Start,
)
from worker.node.clock import NodeClock
from worker.node.launcher import Exit, Launcher
from worker.node.logs import ReplicaLogs
from worker.node.plan import (
    Action,
    Claim,
    DrainReplica,
    EndSleep,
    Forget,
    Kill,
    Launch,
    NodeView,
    Origin,
    ReplicaView,
    Settle,
    StartZygote,
    StopZygote,
    WorkerId,
    WorkerView,
    ZygoteState,
    plan,
)
from worker.node.replica import Replica
from worker.node.sleepers import Sleeping

log = structlog.get_logger()

MOST_PREPARED = 8  # sources whose small files standby workers read ahead
LAUNCHES = 3  # processes a replica may lose before its start; then it has failed
LAUNCH_TIMEOUT_S = 120.0  # from launch to hello
DRAIN_GRACE_S = 2.0  # past the deadline, before a draining worker is killed
REFILL_PATIENCE_S = 5.0  # a climb has the cores to itself for so long at most
REFILL_SETTLE_S = 0.25  # and the first request after it for so long
STEADY_S = 10.0  # who lived so long did not die of its start

Urgency = Literal["soon", "now"]


@dataclass(slots=True)
class _Worker:
    origin: Origin
    launched_at: float
    is_parked: bool = False
    is_dying: bool = False
    replica_id: ReplicaId | None = None
    sleeping: Sleeping | None = None

    @property
    def is_standby(self) -> bool:
        """Parked, and as good for one model as for another."""
        is_free = self.replica_id is None and self.sleeping is None
        return self.is_parked and is_free and not self.is_dying


class Agent:
    """Single owner of a node's workers and replicas; every method belongs to the event loop.

    `on_news` is called after every change that the control plane should hear of.
    """

    def __init__(
        self, launcher: Launcher, logs: ReplicaLogs, clock: NodeClock, *, host: str
    ) -> None:
        self.on_news: Callable[[Urgency], None] = lambda urgency: None
        self._launcher = launcher
        self._logs = logs
        self._clock = clock
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._desired = DesiredState(version=0, standby=0, replicas=())
        self._workers: dict[WorkerId, _Worker] = {}
        self._replicas: dict[ReplicaId, Replica] = {}
        self._unreported: dict[ReplicaId, ReplicaReport] = {}
        self._at_hand: dict[str, ResolvedSource] = {}  # climbed here, by digest, oldest first
        self._prepared: tuple[ResolvedSource, ...] = ()
        self._worker_ids = 0
        self._zygote = ZygoteState.ABSENT
        self._zygote_began_at = 0.0
        self._zygote_failures = 0
        self._standby_failures = 0
        self._refill_timer: asyncio.TimerHandle | None = None  # set: no refilling until then
        launcher.listen(self)

    # What the control plane wants and hears -------------------------------------------------

    def apply(self, desired: DesiredState) -> None:
        """The desired state from now on."""
        self._desired = desired
        self._advance()
        self._prepare_standby()

    def standby_ready(self) -> int:
        """Parked workers that nobody has claimed."""
        return sum(worker.is_standby for worker in self._workers.values())

    def sleepers(self) -> tuple[Sleeper, ...]:
        """Workers that wait on the weights rung."""
        return tuple(one.told for one in self._sleeping())

    def reports(self) -> tuple[ReplicaReport, ...]:
        """The whole truth of every replica; nothing is left unreported."""
        self._unreported.clear()
        return tuple(replica.report() for replica in self._replicas.values())

    def take_changes(self) -> tuple[ReplicaReport, ...]:
        """Reports of the replicas that changed since they were last asked for."""
        changes = tuple(self._unreported.values())
        self._unreported.clear()
        return changes

    async def close(self) -> None:
        """Ends every process; replicas are then STOPPED."""
        self._desired = DesiredState(version=0, standby=0, replicas=())
        for replica_id, replica in self._replicas.items():
            self._replicas[replica_id] = replica.unwanted()
        await self._launcher.close()

    # What processes say (the launcher's listener) --------------------------------------------

    def on_message(self, worker_id: WorkerId, message: FromWorker) -> None:
        worker = self._workers.get(worker_id)
        if worker is None or worker.is_dying:
            return
        if isinstance(message, Hello):
            self._parked(worker_id, worker)
        elif worker.replica_id is None:
            return
        elif isinstance(message, Asleep):
            self._fell_asleep(worker_id, worker, message)
        else:
            self._climbed(worker.replica_id, message)

    def on_exit(self, worker_id: WorkerId, end: Exit) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        if worker.replica_id is not None:
            self._lost_process(worker.replica_id, worker, end)
        elif worker.sleeping is not None:
            log.info("sleeper.gone", revision=worker.sleeping.told.revision, end=str(end))
            self.on_news("soon")
        elif not worker.is_dying:
            self._lost_standby(worker_id, worker, end)
        self._advance()

    def on_zygote_up(self) -> None:
        log.info("zygote.up", seconds=round(self._loop.time() - self._zygote_began_at, 3))
        self._zygote = ZygoteState.UP

    def on_zygote_exit(self, end: Exit) -> None:
        if self._zygote is ZygoteState.ABSENT:
            return
        is_steady = self._loop.time() - self._zygote_began_at > STEADY_S
        self._zygote_failures = 1 if is_steady else self._zygote_failures + 1
        rest_s = Backoff().delay_s(self._zygote_failures)
        log.warning("zygote.lost", end=str(end), rest_s=rest_s)
        self._zygote = ZygoteState.RESTING
        self._loop.call_later(rest_s, self._zygote_rested)
        self._advance()

    def _zygote_rested(self) -> None:
        if self._zygote is ZygoteState.RESTING:
            self._zygote = ZygoteState.ABSENT
            self._advance()

    def _parked(self, worker_id: WorkerId, worker: _Worker) -> None:
        worker.is_parked = True
        log.debug("worker.parked", worker=worker_id, origin=worker.origin.value)
        if worker.replica_id is not None:
            self._start(worker_id, self._replicas[worker.replica_id].assignment)
        else:
            self._send_prepare(worker_id)
            self.on_news("soon")

    def _climbed(self, replica_id: ReplicaId, message: FromWorker) -> None:
        before = self._replicas[replica_id]
        replica = before.heard(message)
        self._put(replica, "soon" if replica.state is before.state else "now")
        if isinstance(message, Progress) or replica.state is before.state:
            return
        log.info("replica.moved", **_facts(replica))
        if before.is_climbing:
            self._standby_failures = 0
            self._climb_ended()
        if replica.state is ReplicaState.READY:
            self._remember(replica.assignment.source)

    def _fell_asleep(self, worker_id: WorkerId, worker: _Worker, message: Asleep) -> None:
        """Its replica has stopped; the process waits for another of the same model."""
        assert worker.replica_id is not None
        replica = self._replicas[worker.replica_id].heard(message)
        assignment, now = replica.assignment, self._clock.now()
        told = Sleeper(
            revision=assignment.revision,
            memory_bytes=message.memory_bytes,
            since=now,
            until=now + assignment.sleep_s,
        )
        worker.replica_id = None
        worker.sleeping = Sleeping(worker_id, assignment.model, assignment.recipe, told)
        self._logs.close(assignment.replica_id)
        log.info("replica.asleep", mib=message.memory_bytes >> 20, **_facts(replica))
        self._put(replica, "now")
        self._loop.call_later(assignment.sleep_s, self._slept_its_time, worker, told)
        self._advance()

    def _slept_its_time(self, worker: _Worker, told: Sleeper) -> None:
        if worker.sleeping is not None and worker.sleeping.told is told:
            worker.sleeping = replace(worker.sleeping, is_over=True)
            self._advance()

    def _lost_process(self, replica_id: ReplicaId, worker: _Worker, end: Exit) -> None:
        before = self._replicas[replica_id]
        last_line = self._logs.close(replica_id)
        never_began = worker.origin is Origin.FORK and not worker.is_parked
        if never_began and not before.is_unwanted and before.launches < LAUNCHES:
            self._replicas[replica_id] = before.unclaimed()
            return
        detail = f"{end}; last log line: {last_line[:500]}" if last_line else str(end)
        replica = before.process_ended(is_clean=end.status == 0, detail=detail)
        if replica.state is not before.state:
            log.info("replica.moved", end=str(end), **_facts(replica))
        self._put(replica, "now")
        if before.is_climbing:
            self._climb_ended()

    def _lost_standby(self, worker_id: WorkerId, worker: _Worker, end: Exit) -> None:
        is_steady = self._loop.time() - worker.launched_at > STEADY_S
        self._standby_failures = 1 if is_steady else self._standby_failures + 1
        rest_s = Backoff().delay_s(self._standby_failures)
        log.warning("standby.lost", worker=worker_id, end=str(end), rest_s=rest_s)
        self._hold_refill(rest_s)
        self.on_news("soon")

    # From what is to what should be -----------------------------------------------------------

    def _advance(self) -> None:
        for action in plan(self._desired, self._view()):
            self._do(action)

    def _view(self) -> NodeView:
        alive = {
            worker_id: WorkerView(worker_id, worker.origin, worker.is_parked, worker.replica_id)
            for worker_id, worker in self._workers.items()
            if not worker.is_dying and worker.sleeping is None
        }
        replicas = {
            replica_id: ReplicaView(
                replica.state, replica.worker_id if replica.worker_id in alive else None
            )
            for replica_id, replica in self._replicas.items()
        }
        may_refill = self._refill_timer is None
        return NodeView(
            tuple(alive.values()),
            replicas,
            self._zygote,
            may_refill,
            self._sleeping(),
        )

    def _sleeping(self) -> tuple[Sleeping, ...]:
        return tuple(
            worker.sleeping
            for worker in self._workers.values()
            if worker.sleeping is not None and not worker.is_dying
        )

    def _do(self, action: Action) -> None:
        match action:
            case Claim(worker_id, assignment):
                self._claim(worker_id, assignment)
            case Launch(origin, assignment):
                self._launch(origin, assignment)
            case DrainReplica(replica_id, deadline_s, may_sleep):
                self._drain(replica_id, deadline_s, may_sleep=may_sleep)
            case Kill(worker_id):
                self._kill(worker_id)
            case EndSleep(worker_id, why):
                log.info("sleeper.ended", worker=worker_id, why=why)
                self._kill(worker_id)
            case Settle(assignment):
                settled = Replica(assignment, self._clock.now()).stopped()
                self._put(settled, "now")
            case Forget(replica_id):
                del self._replicas[replica_id]
            case StartZygote():
                self._zygote, self._zygote_began_at = ZygoteState.BOOTING, self._loop.time()
                self._launcher.start_zygote()
            case StopZygote():
                self._zygote = ZygoteState.ABSENT
                self._launcher.stop_zygote()

    def _remember(self, source: ResolvedSource) -> None:
        """Its files are on this machine: standby workers may read them without fetching."""
        self._at_hand.pop(source.digest, None)
        self._at_hand[source.digest] = source
        while len(self._at_hand) > MOST_PREPARED:
            del self._at_hand[next(iter(self._at_hand))]
        self._prepare_standby()

    def _prepare_standby(self) -> None:
        sources = worth_preparing(self._desired.prepare, tuple(self._at_hand.values()))
        if sources == self._prepared:
            return
        self._prepared = sources
        for worker_id, worker in self._workers.items():
            if worker.is_standby:
                self._send_prepare(worker_id)

    def _send_prepare(self, worker_id: WorkerId) -> None:
        if self._prepared:
            self._launcher.send(worker_id, Prepare(sources=self._prepared))

    def _launch(self, origin: Origin, assignment: ReplicaAssignment | None) -> None:
        self._worker_ids += 1
        worker_id = self._worker_ids
        self._workers[worker_id] = _Worker(origin, self._loop.time())
        if assignment is not None:
            self._claim(worker_id, assignment)
        match origin:
            case Origin.FORK:
                self._launcher.fork(worker_id)
            case Origin.SPAWN:
                name = ReplicaId(f"worker-{worker_id}")
                owner = name if assignment is None else assignment.replica_id
                self._launcher.spawn(worker_id, self._logs.path(owner))
        self._loop.call_later(LAUNCH_TIMEOUT_S, self._give_up_launch, worker_id)

    def _give_up_launch(self, worker_id: WorkerId) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None and not worker.is_parked:
            log.warning("worker.launch-timeout", worker=worker_id)
            self._launcher.kill(worker_id)

    def _claim(self, worker_id: WorkerId, assignment: ReplicaAssignment) -> None:
        worker = self._workers[worker_id]
        worker.replica_id = assignment.replica_id
        self._logs.open(assignment.replica_id, assignment.revision)
        waiting = self._replicas.get(assignment.replica_id)
        replica = waiting or Replica(assignment, self._clock.now())
        if worker.sleeping is not None:
            worker.sleeping = None
            self._start(worker_id, assignment)
            replica = replica.claimed(worker_id, Rung.WEIGHTS, "asleep")
        elif worker.is_parked:
            self._start(worker_id, assignment)
            replica = replica.claimed(worker_id, Rung.RUNTIME, "parked")
        else:
            replica = replica.claimed(worker_id, Rung.NODE, worker.origin.value)
        self._hold_refill(REFILL_PATIENCE_S)
        log.info("replica.moved", **_facts(replica))
        self._put(replica, "soon")

    def _start(self, worker_id: WorkerId, assignment: ReplicaAssignment) -> None:
        self._launcher.send(
            worker_id,
            Start(
                assignment=assignment,
                clock=self._clock.reading(),
                host=self._host,
                log_path=str(self._logs.path(assignment.replica_id)),
            ),
        )

    def _drain(self, replica_id: ReplicaId, deadline_s: float, *, may_sleep: bool) -> None:
        replica = self._replicas[replica_id]
        assert replica.worker_id is not None
        drain = Drain(deadline_s=deadline_s, may_sleep=may_sleep)
        self._launcher.send(replica.worker_id, drain)
        self._loop.call_later(
            deadline_s + DRAIN_GRACE_S, self._kill_undrained, replica.worker_id, replica_id
        )
        self._put(replica.draining(), "now")

    def _kill_undrained(self, worker_id: WorkerId, replica_id: ReplicaId) -> None:
        """Unless the worker has left the replica behind: it sleeps, or is another one already."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.replica_id == replica_id:
            self._kill(worker_id)

    def _kill(self, worker_id: WorkerId) -> None:
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        worker.is_dying = True
        if worker.replica_id is not None:
            self._replicas[worker.replica_id] = self._replicas[worker.replica_id].unwanted()
        self._launcher.kill(worker_id)

    def _climb_ended(self) -> None:
        """Unless another replica still climbs, the pool may soon be refilled."""
        if not any(replica.is_climbing for replica in self._replicas.values()):
            self._hold_refill(REFILL_SETTLE_S, anew=True)

    def _hold_refill(self, seconds: float, *, anew: bool = False) -> None:
        """No refilling for so long, and as long as was said before unless `anew`."""
        if self._refill_timer is not None:
            if not anew and self._refill_timer.when() >= self._loop.time() + seconds:
                return
            self._refill_timer.cancel()
        self._refill_timer = self._loop.call_later(seconds, self._refill)

    def _refill(self) -> None:
        self._refill_timer = None
        self._advance()

    def _put(self, replica: Replica, urgency: Urgency) -> None:
        replica_id = replica.assignment.replica_id
        self._replicas[replica_id] = replica
        self._unreported[replica_id] = replica.report()
        self.on_news(urgency)


def worth_preparing(
    likely: tuple[ResolvedSource, ...], at_hand: tuple[ResolvedSource, ...]
) -> tuple[ResolvedSource, ...]:
    """Sources that standby workers can read without fetching: likely ones first, then the latest.

    `at_hand` is in the order in which they climbed here.
    """
    here = {source.digest for source in at_hand}
    readable = [s for s in likely if s.digest in here or s.uri.startswith("file:")]
    chosen = {source.digest: source for source in (*readable, *reversed(at_hand))}
    return tuple(chosen.values())[:MOST_PREPARED]


def _facts(replica: Replica) -> dict[str, object]:
    facts: dict[str, object] = {
        "replica": replica.assignment.replica_id,
        "revision": replica.assignment.revision,
        "state": replica.state.value,
        "source": replica.runtime_source,
    }
    if replica.stages:
        facts["seconds"] = round(replica.stages[-1].ended_at - replica.received_at, 4)
    if replica.failure is not None:
        facts |= {"code": replica.failure.code, "detail": replica.failure.detail}
    return facts
