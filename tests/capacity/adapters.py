"""Every provider as the contract's tests see it, with hands to break its machines."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from control_plane.capacity.ec2.build import ec2_capacity
from control_plane.capacity.local import LOCAL, LocalAgent, LocalCapacity
from control_plane.capacity.port import CPU, CapacityProvider, MachineKind, Need
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.provider import SimulatedCapacity
from control_plane.capacity.static import StaticCapacity
from infra.clock import SystemClock
from infra.contracts.base import NodeId
from infra.gpus import Wish
from infra.supervise import TaskSet
from infra.virtual_time import LoopClock
from tests.aws.account import DEPLOYMENT, Inline, account
from tests.aws.agents import Agents
from tests.aws.cloud import Cloud
from tests.fleet.world import World

GIB = 1 << 30


@dataclass
class Adapter:
    """One provider; `most` machines can be had of it, `kill` pulls the plug of one."""

    capacity: CapacityProvider
    most: int = 0
    has_standby: bool = False
    kind: MachineKind = CPU
    need: Need = Need(GIB)  # noqa: RUF009 - frozen value
    kill: Callable[[NodeId], Awaitable[None]] | None = None


AdapterMaker = Callable[[], AbstractAsyncContextManager[Adapter]]


@asynccontextmanager
async def static() -> AsyncIterator[Adapter]:
    yield Adapter(StaticCapacity())


@asynccontextmanager
async def simulated() -> AsyncIterator[Adapter]:
    shape = MachineShape(boot_s=20, start_s=5)
    capacity = SimulatedCapacity(
        World().sessions, clock=LoopClock(), shape=shape, most=2, has_standby=True
    )

    async def kill(node_id: NodeId) -> None:
        await capacity.machine(node_id).kill()

    yield Adapter(capacity, most=2, has_standby=True, kill=kill)
    await capacity.close()


@asynccontextmanager
async def local(folder: Path, environment: dict[str, str]) -> AsyncIterator[Adapter]:
    agent = LocalAgent(
        control_plane_url="http://127.0.0.1:8470",
        token="0123456789abcdef",
        state_dir=folder / "node",
        environment=environment,
        command=(sys.executable, "-c", "import time; time.sleep(60)"),
    )
    capacity = LocalCapacity(agent, clock=SystemClock.start())

    async def kill(node_id: NodeId) -> None:
        assert node_id == LOCAL and capacity.pid is not None
        os.kill(capacity.pid, signal.SIGKILL)

    yield Adapter(capacity, kill=kill)
    await capacity.close()


@asynccontextmanager
async def ec2() -> AsyncIterator[Adapter]:
    cloud = Cloud(LoopClock().now)
    with account(cloud) as aws:
        aws.add_group(most=2)
        capacity = ec2_capacity(
            DEPLOYMENT,
            clock=LoopClock(),
            queue_url=aws.queue_url,
            clients=aws.clients,
            threads=Inline(),
            poll_s=1,
        )
        agents = Agents(cloud, aws.clients, World().sessions, LoopClock(), MachineShape(gpus=1))
        tasks = TaskSet()
        tasks.start(agents.run(), name="agents")

        async def kill(node_id: NodeId) -> None:
            cloud.kill(node_id)

        kind = MachineKind("l4")
        need = Need(GIB, Wish(1, kind))
        yield Adapter(capacity, 2, has_standby=True, kind=kind, need=need, kill=kill)
        await tasks.close()
