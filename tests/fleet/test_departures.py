"""Machines that will be taken away: nothing new starts there, and what serves is replaced first."""

import asyncio

import pytest

from control_plane.capacity.port import Leaving as Told
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Script
from infra.contracts.base import ModelName, NodeId
from infra.contracts.node import Leaving, NodeReport
from infra.contracts.revision import ReplicaState
from tests.fleet.makers import N1, a_registration
from tests.fleet.world import CHAT_1, LOCAL, World, run

GPU = MachineShape(gpus=1, gpu="l4", boot_s=20.0)
SLOW_TO_END = Script(drain_s=44)
READY, DRAINING, LOST = ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.LOST


async def serving(world: World, **scaling: int) -> None:
    await world.deploy(resources={"gpus": 1}, scaling={"min": 1, "grace": 60, **scaling})
    await world.until(lambda: world.fleet.ready(CHAT_1))


def notice(world: World, node_id: NodeId, *, in_s: float | None = None) -> None:
    """The provider's word, heard twice."""
    at = None if in_s is None else world.now() + in_s
    for _ in range(2):
        world.capacity.say(Told(node_id, "spot", at))


def serves(world: World, node_id: NodeId) -> bool:
    return [it.node_id for it in world.fleet.ready(CHAT_1)] == [node_id]


@pytest.mark.parametrize("in_s", [None, 120.0])
def test_a_replica_serves_until_another_does_and_then_its_machine_goes(in_s: float | None) -> None:
    async def main() -> None:
        async with World(shape=GPU, most=2) as world:
            await serving(world)
            notice(world, LOCAL, in_s=in_s)

            took_s = await world.until(lambda: not serves(world, LOCAL))
            assert took_s == pytest.approx(20 + 1.27, abs=0.1)
            assert serves(world, NodeId("machine-1")) and world.alive() == [DRAINING, READY]
            await world.until(lambda: len(world.capacity.machines()) == 1)
            assert world.moves(LOST) == []
            assert [it["reason"] for it in world.logs if it["event"] == "node.leaves"] == ["spot"]

    run(main())


def test_without_another_machine_it_serves_as_long_as_its_requests_have_time_to_end() -> None:
    async def main() -> None:
        async with World(shape=GPU, most=1, script=SLOW_TO_END) as world:
            await serving(world)
            notice(world, LOCAL, in_s=120)
            assert await world.until(lambda: not serves(world, LOCAL), seconds=120) == (
                pytest.approx(120 - 45, abs=1)
            )
            [replica] = world.fleet.replicas()
            assert replica.drain_deadline_s == pytest.approx(45, abs=1)
            assert replica.detail == "node local leaves: spot"

    run(main())


def test_a_request_that_runs_is_answered_by_the_machine_that_goes() -> None:
    async def main() -> None:
        async with World(shape=GPU, most=2, script=SLOW_TO_END) as world:
            await serving(world)
            long = world.request(seconds=40)
            await asyncio.sleep(1)
            notice(world, LOCAL, in_s=120)
            outcome = await long
            assert (outcome.error, outcome.attempts) == (None, 1)
            assert outcome.endpoint is not None and outcome.endpoint.node_id == LOCAL

    run(main())


def test_a_request_to_a_model_at_zero_starts_nothing_there() -> None:
    async def main() -> None:
        async with World(shape=GPU, most=2) as world:
            await world.deploy(resources={"gpus": 1}, scaling={"grace": 60})
            await world.until(lambda: world.fleet.nodes())
            notice(world, LOCAL)
            outcome = await world.request()
            assert outcome.endpoint is not None and outcome.endpoint.node_id == "machine-1"

    run(main())


def test_what_nobody_wants_any_more_drains_at_once() -> None:
    async def main() -> None:
        async with World(shape=GPU, most=2) as world:
            await world.deploy(resources={"gpus": 1}, scaling={"grace": 60})
            await world.request()
            notice(world, LOCAL)
            await world.deployments.delete(ModelName("chat"), now=world.now())
            assert world.alive() == [DRAINING]
            await world.until(lambda: not world.alive())
            assert world.moves(LOST) == []

    run(main())


def test_an_agent_tells_it_in_each_report_and_a_time_that_is_known_stands() -> None:
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=0)

        def told(*notices: Leaving | None) -> float | None:
            for leaving in notices:
                report = NodeReport(node_id=N1, standby_ready=0, leaving=leaving)
                world.sessions.report(report, now=0)
            return world.fleet.leaving()[N1].at

        assert told(Leaving(reason="rebalance")) is None
        assert told(Leaving(reason="spot", at=120)) == 120
        assert told(None, Leaving(reason="its group"), Leaving(reason="spot", at=119)) == 120
        world.fleet.check_integrity()

    run(main())


def test_an_agent_that_starts_again_is_where_it_was_and_a_machine_that_boots_again_stays() -> None:
    async def main() -> None:
        world = World()
        world.sessions.register(a_registration(), now=0)
        world.sessions.heard(Told(N1, "spot"))
        world.sessions.register(a_registration(), now=1)
        assert N1 in world.fleet.leaving() and world.fleet.rooms() == []

        clock = a_registration().clock.model_copy(update={"boot_id": "another"})
        again = a_registration().model_copy(update={"clock": clock})
        world.sessions.register(again, now=100)
        assert not world.fleet.leaving() and len(world.fleet.rooms()) == 1
        world.fleet.check_integrity()

    run(main())
