"""A provider of machines that exist in virtual time."""

from collections import deque

from control_plane.capacity.port import EndedListener, Machine, Need
from control_plane.capacity.simulated.machine import MachineShape, NodeLink, SimulatedMachine
from control_plane.capacity.simulated.script import Script, Scripts
from infra.clock import Clock
from infra.contracts.base import NodeId
from infra.contracts.node import ReplicaAssignment
from infra.errors import NoCapacity


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
        shape: MachineShape = MachineShape(),  # noqa: B008 - frozen value
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

    def machine(self, node_id: NodeId) -> SimulatedMachine:
        """A machine of ours; raises KeyError where there is none of that id."""
        return self._machines[node_id]

    def machines(self) -> tuple[SimulatedMachine, ...]:
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
