"""A machine that exists in virtual time: its agent speaks the real node protocol."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from control_plane.capacity.port import CPU, CapacityListener, Ended, MachineKind
from control_plane.capacity.simulated.replica import SimulatedReplica
from control_plane.capacity.simulated.script import Scripts
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
from infra.contracts.stage import Rung
from infra.errors import NotFound
from infra.supervise import TaskSet

_BOOT_ID = "simulated"


class NodeLink(Protocol):
    """What an agent asks of the control plane (fleet.node_sessions.NodeSessions)."""

    def register(self, registration: NodeRegistration, *, now: float) -> NodeLease: ...

    async def desired(self, node_id: NodeId, after: int, wait_s: float) -> DesiredState: ...

    def report(self, report: NodeReport, *, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class MachineShape:
    """What a simulated machine has and how long it takes: `boot_s` from its launch to its
    registration, `start_s` from standby."""

    cpus: int = 2
    memory_bytes: int = 16 << 30
    gpus: int = 0
    gpu: str | None = None
    boot_s: float = 0.0
    start_s: float = 0.0
    fork_s: float = 0.01
    spawn_s: float = 1.0

    @property
    def kind(self) -> MachineKind:
        return MachineKind(self.gpu or "gpu") if self.gpus else CPU

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


class SimulatedMachine:
    """One machine with its agent: registers, watches its desired state, runs and reports."""

    def __init__(
        self,
        node_id: NodeId,
        link: NodeLink,
        clock: Clock,
        shape: MachineShape,
        script: Scripts,
        say: CapacityListener,
    ) -> None:
        self.node_id = node_id
        self.launched_at = clock.now()
        self.started: list[ReplicaAssignment] = []
        self._link = link
        self._clock = clock
        self._shape = shape
        self._script = script
        self._say_event = say
        self._tasks = TaskSet()
        self._running: dict[ReplicaId, SimulatedReplica] = {}
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
            self._say_event(Ended(self.node_id, "killed"))

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
        running.kill()
        failure = Failure(code="replica-lost", detail=detail, is_permanent=False)
        running.end(ReplicaState.FAILED, failure)

    def restore(self, assignment: ReplicaAssignment) -> None:
        """A replica is READY here since before anybody who asks: its agent says so when it
        registers next."""
        running = self._take(assignment, Rung.RUNTIME)
        running.task = self._tasks.start(
            running.serve(self._script(assignment)), name=f"{self.node_id} {assignment.replica_id}"
        )

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

    def _say(self, *about: SimulatedReplica, logs: tuple[LogLine, ...] = ()) -> None:
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
                self._running.pop(replica_id).kill()
        for assignment in desired.replicas:
            running_now = self._running.get(assignment.replica_id)
            if running_now is None:
                self._run(assignment)
            elif assignment.desired == "drain":
                running_now.drain(assignment)
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
        self.started.append(assignment)
        running = self._take(assignment, Rung.RUNTIME if is_parked else Rung.NODE)
        spawn_s = 0.0 if is_parked else self._shape.spawn_s
        running.task = self._tasks.start(
            running.live(self._script(assignment), spawn_s=spawn_s),
            name=f"{self.node_id} {assignment.replica_id}",
        )
        self._say(running)

    def _take(self, assignment: ReplicaAssignment, from_rung: Rung) -> SimulatedReplica:
        report = ReplicaReport(
            replica_id=assignment.replica_id,
            revision=assignment.revision,
            state=ReplicaState.STARTING,
            from_rung=from_rung,
        )
        running = self._running[assignment.replica_id] = SimulatedReplica(
            assignment, report, port=next(self._ports), clock=self._clock, tell=self._heard
        )
        return running

    def _heard(self, running: SimulatedReplica) -> None:
        self._say(running)
        if running.is_over:
            self._running.pop(running.assignment.replica_id, None)
