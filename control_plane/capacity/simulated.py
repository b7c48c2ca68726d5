"""Machines that exist in virtual time: their agents speak the real node protocol."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from control_plane.capacity.port import EndedListener, Machine, Need
from infra.clock import Clock
from infra.contracts.base import GpuId, NodeId, ReplicaId
from infra.contracts.node import (
    ClockReading,
    DesiredState,
    Failure,
    Gpu,
    LogLine,
    NodeLease,
    NodeRegistration,
    NodeReport,
    ReplicaAssignment,
    ReplicaReport,
)
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung, Stage, StageProgress, StageTiming
from infra.errors import NoCapacity, NotFound
from infra.supervise import TaskSet

_BOOT_ID = "simulated"


class NodeLink(Protocol):
    """What an agent asks of the control plane (fleet.node_sessions.NodeSessions)."""

    def register(self, registration: NodeRegistration, *, now: float) -> NodeLease: ...

    async def desired(self, node_id: NodeId, after: int, wait_s: float) -> DesiredState: ...

    def report(self, report: NodeReport, *, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Climbing:
    """One stage of a simulated climb; `steps` progress reports on its way."""

    stage: Stage
    seconds: float
    steps: int = 4
    bytes: int | None = None
    source: str | None = "simulated"


@dataclass(frozen=True, slots=True)
class Script:
    """What becomes of one replica.

    It climbs `stages`; at the end of `fails_after` stages it fails with `failure`, or dies
    without a word when there is none (None: it gets READY). `hangs` stays in that stage for
    ever. READY it lives `lives_s` (None: until told otherwise) and takes `drain_s` to drain.
    """

    stages: tuple[Climbing, ...] = (
        Climbing(Stage.RUNTIME, 0.02),
        Climbing(Stage.WEIGHTS, 0.2, bytes=270_000_000),
        Climbing(Stage.ENGINE, 0.05),
    )
    fails_after: int | None = None
    failure: Failure | None = None
    hangs: bool = False
    lives_s: float | None = None
    drain_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MachineShape:
    """What a simulated machine has and how long it takes."""

    cpus: int = 2
    memory_bytes: int = 16 << 30
    gpus: int = 0
    gpu: str | None = None
    boot_s: float = 0.0
    fork_s: float = 0.01
    spawn_s: float = 1.0

    def devices(self, node_id: NodeId) -> tuple[Gpu, ...]:
        """The GPUs of one machine of this shape."""
        return tuple(
            Gpu(
                gpu_id=GpuId(f"GPU-{node_id}-{number}"),
                kind=self.gpu or "gpu",
                name=f"simulated {self.gpu or 'gpu'}",
                memory_bytes=24 << 30,
                driver="simulated",
            )
            for number in range(self.gpus)
        )


Scripts = Callable[[ReplicaAssignment], Script]


class SimulatedCapacity:
    """A provider of `most` machines of one shape.

    `script` chooses what becomes of a replica; scripts put into `next_scripts` come first.
    Failures are injected through the machines: `machine(id).kill()`, `.partition()`, `.heal()`,
    `.crash(replica_id)`.
    """

    def __init__(
        self,
        link: NodeLink,
        *,
        clock: Clock,
        shape: MachineShape = MachineShape(),
        script: Scripts = lambda _: Script(),
        most: int = 1,
        is_elastic: bool = True,
    ) -> None:
        self._link = link
        self._clock = clock
        self._shape = shape
        self._script = script
        self._most = most
        self._is_elastic = is_elastic
        self.next_scripts: deque[Script] = deque()
        self._machines: dict[NodeId, SimulatedMachine] = {}
        self._listeners: list[EndedListener] = []

    async def launch(self, node_id: NodeId, need: Need | None = None) -> None:
        if node_id in self._machines:
            return
        if len(self._machines) >= self._most:
            raise NoCapacity(f"all {self._most} machines run")
        if need is not None and (
            need.memory_bytes > self._shape.memory_bytes or need.gpus.count > self._shape.gpus
        ):
            raise NoCapacity("no machine is large enough")
        machine = SimulatedMachine(
            node_id, self._link, self._clock, self._shape, self._choose_script, self._ended
        )
        self._machines[node_id] = machine
        machine.start(boot_s=self._shape.boot_s)

    async def terminate(self, node_id: NodeId) -> None:
        machine = self._machines.pop(node_id, None)
        if machine is not None:
            await machine.close()

    def describe(self) -> tuple[Machine, ...]:
        return tuple(
            Machine(
                machine.node_id,
                machine.launched_at,
                self._is_elastic,
                boot_s=2 * self._shape.boot_s + 60,
            )
            for machine in self._machines.values()
        )

    def subscribe_ended(self, listener: EndedListener) -> None:
        self._listeners.append(listener)

    def machine(self, node_id: NodeId) -> "SimulatedMachine":
        """A machine of ours; raises KeyError where there is none of that id."""
        return self._machines[node_id]

    def machines(self) -> tuple["SimulatedMachine", ...]:
        return tuple(self._machines.values())

    async def close(self) -> None:
        """Ends every machine."""
        for node_id in tuple(self._machines):
            await self.terminate(node_id)

    def _choose_script(self, assignment: ReplicaAssignment) -> Script:
        return self.next_scripts.popleft() if self.next_scripts else self._script(assignment)

    def _ended(self, node_id: NodeId, reason: str) -> None:
        self._machines.pop(node_id, None)
        for listener in self._listeners:
            listener(node_id, reason)


@dataclass
class _Running:
    """One replica's process on a simulated machine."""

    assignment: ReplicaAssignment
    report: ReplicaReport
    task: asyncio.Task[None] | None = None
    drain: asyncio.Event = field(default_factory=asyncio.Event)


class SimulatedMachine:
    """One machine with its agent: registers, watches its desired state, runs and reports."""

    def __init__(
        self,
        node_id: NodeId,
        link: NodeLink,
        clock: Clock,
        shape: MachineShape,
        script: Scripts,
        ended: EndedListener,
    ) -> None:
        self.node_id = node_id
        self.launched_at = clock.now()
        self.started: list[ReplicaAssignment] = []
        self._link = link
        self._clock = clock
        self._shape = shape
        self._script = script
        self._ended = ended
        self._tasks = TaskSet()
        self._running: dict[ReplicaId, _Running] = {}
        self._parked = 0
        self._forking = 0
        self._is_partitioned = False
        self._lease: NodeLease | None = None
        self._ports = iter(range(20_000, 60_000))

    def start(self, *, boot_s: float) -> None:
        """Boots the machine and its agent."""
        self._tasks.start(self._live(boot_s), name=f"{self.node_id} agent")

    async def close(self) -> None:
        """Ends the machine; whoever asked for it knows."""
        await self._tasks.close()
        self._running.clear()

    async def kill(self, *, is_noticed: bool = True) -> None:
        """Pulls the plug; `is_noticed` where the provider sees that at once."""
        await self.close()
        self._is_partitioned = True
        if is_noticed:
            self._ended(self.node_id, "killed")

    async def restart_agent(self, *, is_orderly: bool = False) -> None:
        """The agent dies with its workers and a new one starts at once; in order, it says so."""
        if is_orderly:
            self._say_goodbye()
        await self.close()
        self._tasks = TaskSet()
        self._parked = self._forking = 0
        self.start(boot_s=0.0)

    def _say_goodbye(self) -> None:
        stopped = {"state": ReplicaState.STOPPED, "progress": None}
        replicas = tuple(report.model_copy(update=stopped) for report in self.replicas())
        farewell = NodeReport(
            node_id=self.node_id, standby_ready=0, replicas=replicas, is_leaving=True
        )
        self._link.report(farewell, now=self._clock.now())

    def partition(self) -> None:
        """Cuts the agent off: it runs on and nobody hears of it."""
        self._is_partitioned = True

    def heal(self) -> None:
        """Ends a partition."""
        self._is_partitioned = False
        self._say()

    def crash(self, replica_id: ReplicaId, *, detail: str = "killed by signal 9") -> None:
        """Kills a replica's process, whatever it is doing."""
        running = self._running[replica_id]
        if running.task is not None:
            running.task.cancel()
        failure = Failure(code="replica-lost", detail=detail, is_permanent=False)
        self._end(running, ReplicaState.FAILED, failure)

    def replicas(self) -> tuple[ReplicaReport, ...]:
        """The machine's own truth about its replicas."""
        return tuple(running.report for running in self._running.values())

    def log(self, replica_id: ReplicaId, text: str) -> None:
        """A replica writes a line."""
        running = self._running[replica_id]
        line = LogLine(
            at=self._clock.now(),
            replica_id=replica_id,
            revision=running.assignment.revision,
            text=text,
        )
        self._say(logs=(line,))

    # -- the agent -----------------------------------------------------------------------------

    async def _live(self, boot_s: float) -> None:
        await asyncio.sleep(boot_s)
        self._register()
        self._tasks.start(self._renew(), name=f"{self.node_id} lease")
        version = 0
        while True:
            if self._is_partitioned:
                await asyncio.sleep(0.1)
                continue
            try:
                desired = await self._link.desired(self.node_id, version, 20.0)
            except NotFound:
                self._register()
                version = 0
                continue
            if self._is_partitioned:
                continue  # the answer is lost on the way
            version = desired.version
            self._obey(desired)

    def _register(self) -> None:
        now = self._clock.now()
        self._lease = self._link.register(
            NodeRegistration(
                node_id=self.node_id,
                cpus=self._shape.cpus,
                memory_bytes=self._shape.memory_bytes,
                gpus=self._shape.devices(self.node_id),
                clock=ClockReading(wall=now, monotonic=now, boot_id=_BOOT_ID),
                started_at=self.launched_at,
                replicas=self.replicas(),
            ),
            now=now,
        )

    async def _renew(self) -> None:
        while True:
            lease_s = self._lease.lease_s if self._lease is not None else 3.0
            await asyncio.sleep(lease_s / 3)
            self._say()

    def _say(self, *about: _Running, logs: tuple[LogLine, ...] = ()) -> None:
        """Reports these replicas, or all of them."""
        if self._is_partitioned:
            return
        reports = tuple(running.report for running in about) or self.replicas()
        report = NodeReport(
            node_id=self.node_id, standby_ready=self._parked, replicas=reports, logs=logs
        )
        try:
            self._link.report(report, now=self._clock.now())
        except NotFound:
            self._register()

    def _obey(self, desired: DesiredState) -> None:
        listed = {assignment.replica_id for assignment in desired.replicas}
        for replica_id in tuple(self._running):
            if replica_id not in listed:
                running = self._running.pop(replica_id)
                if running.task is not None:
                    running.task.cancel()
        for assignment in desired.replicas:
            running_now = self._running.get(assignment.replica_id)
            if running_now is None:
                self._run(assignment)
            elif assignment.desired == "drain":
                running_now.assignment = assignment
                running_now.drain.set()
        self._park(desired.standby)

    def _park(self, wanted: int) -> None:
        for _ in range(wanted - self._parked - self._forking):
            self._forking += 1
            self._tasks.start(self._fork(), name=f"{self.node_id} fork")
        self._parked = min(self._parked, wanted)

    async def _fork(self) -> None:
        await asyncio.sleep(self._shape.fork_s)
        self._forking -= 1
        self._parked += 1
        self._say()

    def _run(self, assignment: ReplicaAssignment) -> None:
        is_parked = self._parked > 0
        if is_parked:
            self._parked -= 1
        report = ReplicaReport(
            replica_id=assignment.replica_id,
            revision=assignment.revision,
            state=ReplicaState.STARTING,
            from_rung=Rung.RUNTIME if is_parked else Rung.NODE,
        )
        running = _Running(assignment, report)
        if assignment.desired == "drain":
            running.drain.set()
        self.started.append(assignment)
        self._running[assignment.replica_id] = running
        running.task = self._tasks.start(
            self._live_out(running, self._script(assignment), is_parked=is_parked),
            name=f"{self.node_id} {assignment.replica_id}",
        )
        self._say(running)

    # -- one replica ---------------------------------------------------------------------------

    async def _live_out(self, running: _Running, script: Script, *, is_parked: bool) -> None:
        for place, climbing in enumerate(script.stages):
            if script.hangs and place == (script.fails_after or 0):
                await asyncio.Event().wait()
            if script.fails_after == place and not script.hangs:
                self._end(running, ReplicaState.FAILED, script.failure or _silent_death())
                return
            is_cold_runtime = climbing.stage is Stage.RUNTIME and not is_parked
            extra_s = self._shape.spawn_s if is_cold_runtime else 0.0
            await self._climb(running, climbing, climbing.seconds + extra_s)
        if script.fails_after == len(script.stages):
            self._end(running, ReplicaState.FAILED, script.failure or _silent_death())
            return
        self._update(
            running,
            state=ReplicaState.READY,
            host="127.0.0.1",
            port=next(self._ports),
            progress=None,
        )
        await self._serve(running, script)

    async def _climb(self, running: _Running, climbing: Climbing, seconds: float) -> None:
        began_at = self._clock.now()
        for step in range(climbing.steps):
            self._update(
                running,
                progress=StageProgress(stage=climbing.stage, fraction=step / climbing.steps),
            )
            await asyncio.sleep(seconds / climbing.steps)
        timing = StageTiming(
            stage=climbing.stage,
            started_at=began_at,
            seconds=self._clock.now() - began_at,
            bytes=climbing.bytes,
            source=climbing.source,
        )
        self._update(running, stages=(*running.report.stages, timing))

    async def _serve(self, running: _Running, script: Script) -> None:
        try:
            async with asyncio.timeout(script.lives_s):
                await running.drain.wait()
        except TimeoutError:
            self._end(running, ReplicaState.FAILED, _silent_death())
            return
        self._update(running, state=ReplicaState.DRAINING)
        await asyncio.sleep(min(script.drain_s, running.assignment.drain_deadline_s))
        self._end(running, ReplicaState.STOPPED, None)

    def _update(self, running: _Running, **changes: object) -> None:
        running.report = running.report.model_copy(update=changes)
        self._say(running)

    def _end(self, running: _Running, state: ReplicaState, failure: Failure | None) -> None:
        self._update(running, state=state, failure=failure)
        self._running.pop(running.assignment.replica_id, None)


def _silent_death() -> Failure:
    return Failure(code="replica-lost", detail="exited without a word", is_permanent=False)
