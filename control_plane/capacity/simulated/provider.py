"""A provider of machines that exist in virtual time."""

import asyncio
from collections import deque

from control_plane.capacity.port import (
    CapacityEvent,
    CapacityListener,
    Ended,
    LaunchToken,
    Machine,
    MachineKind,
    Need,
)
from control_plane.capacity.simulated.cloud import SimulatedCloud
from control_plane.capacity.simulated.machine import MachineShape, NodeLink, SimulatedMachine
from control_plane.capacity.simulated.script import Script, Scripts
from infra.clock import Clock
from infra.contracts.base import NodeId
from infra.contracts.node import ReplicaAssignment
from infra.contracts.stage import Rung
from infra.errors import BadSpec, NoCapacity, PlatformError
from infra.supervise import TaskSet


class SimulatedCapacity:
    """A provider of machines of one shape, of which `most` run at a time.

    `script` chooses what becomes of a replica; scripts put into `next_scripts` come first.
    Failures are injected through the machines: `machine(id).kill()`, `.partition()`, `.heal()`,
    `.crash(replica_id)`, and through `next_errors`, which launches and starts raise in turn.
    """

    def __init__(
        self,
        link: NodeLink,
        *,
        clock: Clock,
        shape: MachineShape = MachineShape(),  # noqa: B008 - frozen value
        script: Scripts = lambda _: Script(),
        most: int = 1,
        is_elastic: bool = True,
        has_standby: bool = False,
        cloud: SimulatedCloud | None = None,
    ) -> None:
        """`cloud` draws how long machines take, and refuses some; without one it is the shape's
        seconds each time."""
        self._link = link
        self._clock = clock
        self._shape = shape
        self._script = script
        self._most = most
        self._is_elastic = is_elastic
        self._has_standby = has_standby
        self._cloud = cloud
        self.next_scripts: deque[Script] = deque()
        self.next_errors: deque[PlatformError] = deque()
        self._machines: dict[NodeId, SimulatedMachine] = {}
        self._stopped: dict[NodeId, float] = {}  # machines in standby, by when they went there
        self._held = 0
        self._filling = 0
        self._launched = 0
        self._tokens: dict[LaunchToken, NodeId] = {}
        self._tasks = TaskSet()
        self._listeners: list[CapacityListener] = []

    async def open(self) -> None:
        return

    async def close(self) -> None:
        """Ends every machine."""
        self._held = 0
        await self._tasks.close()
        for node_id in (*self._machines, *self._stopped):
            await self.terminate(node_id)

    async def launch(self, need: Need, *, token: LaunchToken) -> NodeId:
        if (known := self._known(token)) is not None:
            return known
        self._check(need)
        boot_s = self._shape.boot_s if self._cloud is None else self._cloud.launch()
        node_id = self._tokens[token] = self._new_id()
        self._run(node_id, boot_s=boot_s)
        return node_id

    async def start(self, need: Need, *, token: LaunchToken) -> NodeId | None:
        if (known := self._known(token)) is not None:
            return known
        if not self._stopped or not need.suits(self._shape.kind):
            return None
        self._check(need)
        start_s = self._shape.start_s if self._cloud is None else self._cloud.start()
        node_id = self._tokens[token] = min(self._stopped)
        del self._stopped[node_id]
        self._run(node_id, boot_s=start_s)
        self._fill()
        return node_id

    async def stop(self, node_id: NodeId) -> None:
        was_running = node_id in self._machines
        await self._end(node_id)
        if was_running and self._has_standby:
            self._stopped[node_id] = self._clock.now()

    async def terminate(self, node_id: NodeId) -> None:
        self._stopped.pop(node_id, None)
        await self._end(node_id)

    async def hold(self, kind: MachineKind, stopped: int) -> None:
        if not self._has_standby or kind != self._shape.kind:
            return
        self._held = stopped
        for node_id in sorted(self._stopped)[stopped:]:
            del self._stopped[node_id]
        self._fill()

    def describe(self) -> tuple[Machine, ...]:
        running = (
            self._describe(node_id, machine.launched_at, Rung.NODE)
            for node_id, machine in self._machines.items()
        )
        waiting = (self._describe(it, at, Rung.STOPPED) for it, at in self._stopped.items())
        return (*running, *waiting)

    def subscribe(self, listener: CapacityListener) -> None:
        self._listeners.append(listener)

    def say(self, event: CapacityEvent) -> None:
        """The provider knows of a machine that goes, or is gone."""
        if isinstance(event, Ended):
            self._machines.pop(event.node_id, None)
        for listener in self._listeners:
            listener(event)

    def add(self, node_id: NodeId) -> None:
        """Launches a machine under an id of the caller's choice; may be repeated."""
        if node_id not in self._machines:
            self._run(node_id, boot_s=self._shape.boot_s)

    def machine(self, node_id: NodeId) -> SimulatedMachine:
        """A machine of ours that runs; raises KeyError where there is none of that id."""
        return self._machines[node_id]

    def machines(self) -> tuple[SimulatedMachine, ...]:
        """Those that run."""
        return tuple(self._machines.values())

    def _known(self, token: LaunchToken) -> NodeId | None:
        node_id = self._tokens.get(token)
        return node_id if node_id in self._machines else None

    def _check(self, need: Need) -> None:
        if self.next_errors:
            raise self.next_errors.popleft()
        shape = self._shape
        if need.memory_bytes > shape.memory_bytes or need.gpus.count > shape.gpus:
            raise BadSpec("no machine is large enough")
        if not need.suits(shape.kind):
            raise BadSpec(f"no machine has a {need.gpus.kind} GPU")
        if len(self._machines) >= self._most:
            raise NoCapacity(f"all {self._most} machines run", tried=[shape.kind])

    def _run(self, node_id: NodeId, *, boot_s: float) -> None:
        machine = self._machines[node_id] = SimulatedMachine(
            node_id, self._link, self._clock, self._shape, self._choose_script, self.say
        )
        machine.start(boot_s=boot_s)

    def _fill(self) -> None:
        for _ in range(self._held - len(self._stopped) - self._filling):
            self._filling += 1
            self._tasks.start(self._boot_into_standby(), name="fill standby")

    async def _boot_into_standby(self) -> None:
        try:
            await asyncio.sleep(self._shape.boot_s if self._cloud is None else self._fill_s())
        finally:
            self._filling -= 1
        if len(self._stopped) < self._held:
            self._stopped[self._new_id()] = self._clock.now()

    def _fill_s(self) -> float:
        """A cloud that refuses is asked again after a minute."""
        assert self._cloud is not None
        waited_s = 0.0
        while True:
            try:
                return waited_s + self._cloud.fill()
            except PlatformError:
                waited_s += 60.0

    async def _end(self, node_id: NodeId) -> None:
        machine = self._machines.pop(node_id, None)
        if machine is not None:
            await machine.close()

    def _new_id(self) -> NodeId:
        self._launched += 1
        return NodeId(f"machine-{self._launched}")

    def _describe(self, node_id: NodeId, since: float, rung: Rung) -> Machine:
        boot_s = 2 * self._shape.boot_s + 60
        return Machine(node_id, since, self._is_elastic, boot_s, self._shape.kind, rung)

    def _choose_script(self, assignment: ReplicaAssignment) -> Script:
        return self.next_scripts.popleft() if self.next_scripts else self._script(assignment)
