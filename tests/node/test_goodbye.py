"""What a session says of its node at its end, and that it speaks for no other machine's."""

import asyncio
from pathlib import Path

import pytest

from infra.contracts.base import NodeId
from infra.contracts.node import NodeLease, NodeRegistration
from infra.virtual_time import run_virtual
from worker.node.agent import Agent
from worker.node.clock import NodeClock
from worker.node.control_plane import Unreachable
from worker.node.fake_control_plane import FakeControlPlane
from worker.node.fake_launcher import FakeLauncher
from worker.node.logs import ReplicaLogs
from worker.node.session import NodeFacts, Session

NODE = NodeId("n1")


class NameTaken(FakeControlPlane):
    """It knows the node, which is another machine."""

    async def register(self, registration: NodeRegistration) -> NodeLease:
        await super().register(registration)
        raise Unreachable("POST /internal/nodes: status 409")


@pytest.mark.parametrize(
    ("control_plane", "farewells"), [(FakeControlPlane(), 1), (NameTaken(), 0)]
)
def test_a_session_says_goodbye_of_the_node_that_it_registered(
    control_plane: FakeControlPlane, farewells: int, tmp_path: Path
) -> None:
    async def main() -> None:
        clock = NodeClock()
        logs = ReplicaLogs(tmp_path, clock)
        facts = NodeFacts(NODE, cpus=2, memory_bytes=1 << 30, began_s=0.0)
        session = Session(control_plane, Agent(FakeLauncher(), logs, clock), logs, clock, facts)
        running = asyncio.create_task(session.run())
        await asyncio.sleep(5)
        running.cancel()
        await asyncio.wait((running,))
        await session.say_goodbye()

    run_virtual(main())

    assert sum(report.is_leaving for report in control_plane.reports) == farewells
