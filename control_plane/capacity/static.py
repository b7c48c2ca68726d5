"""Machines that already run our agent, in any rack: they register themselves, and are used."""

from control_plane.capacity.port import CapacityListener, LaunchToken, Machine, MachineKind, Need
from infra.contracts.base import NodeId
from infra.errors import NoCapacity


class StaticCapacity:
    """Starts no machine and ends none. Their nodes come and go by themselves."""

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def launch(self, need: Need, *, token: LaunchToken) -> NodeId:
        raise NoCapacity(
            "nodes are not started by this platform",
            hint="start `python -m worker.main node` on another machine",
            tried=[],
        )

    async def start(self, need: Need, *, token: LaunchToken) -> NodeId | None:
        return None

    async def stop(self, node_id: NodeId) -> None:
        return

    async def terminate(self, node_id: NodeId) -> None:
        return

    async def hold(self, kind: MachineKind, stopped: int) -> None:
        return

    def describe(self) -> tuple[Machine, ...]:
        return ()

    def subscribe(self, listener: CapacityListener) -> None:
        return
