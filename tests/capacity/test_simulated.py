import asyncio

import pytest

from control_plane.capacity.port import LaunchToken, Need
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.provider import SimulatedCapacity
from control_plane.capacity.simulated.script import Script
from infra.contracts.base import NodeId
from infra.contracts.revision import ReplicaState
from infra.supervise import TaskSet
from infra.virtual_time import LoopClock
from tests.fleet.makers import GIB
from tests.fleet.world import COLD_S, World, run

A = NodeId("a")


def test_a_machine_registers_after_its_boot():
    async def main() -> None:
        world = World(shape=MachineShape(boot_s=40), most=2)
        node_id = await world.capacity.launch(Need(GIB), token=LaunchToken("a"))
        await asyncio.sleep(39)
        assert world.fleet.nodes() == ()
        assert [it.node_id for it in world.capacity.describe()] == [node_id]
        await asyncio.sleep(2)
        assert [it.node_id for it in world.fleet.nodes()] == [node_id]
        await world.capacity.close()

    run(main())


def test_a_terminated_machine_says_nothing_more_and_its_lease_ends():
    async def main() -> None:
        async with World() as world:
            await asyncio.sleep(0.001)
            assert len(world.fleet.nodes()) == 1
            await world.capacity.terminate(world.machine().node_id)
            await world.until(lambda: world.fleet.nodes() == (), seconds=12)

    run(main())


def test_a_killed_machine_is_noticed_at_once():
    async def main() -> None:
        async with World() as world:
            await world.machine().kill()
            assert world.fleet.nodes() == () and world.capacity.describe() == ()

    run(main())


def test_without_a_parked_worker_the_runtime_stage_takes_its_time():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"standby": 0})
            outcome = await world.request()
            assert outcome.started_at is not None
            waited = outcome.started_at - outcome.arrived_at
            assert waited == pytest.approx(COLD_S + 1.0, abs=1e-6)

    run(main())


def test_the_standby_is_refilled_in_the_background():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"standby": 2})
            await asyncio.sleep(1)
            assert world.fleet.nodes()[0].standby_ready == 2
            request = world.request(seconds=9)
            await asyncio.sleep(1)
            assert world.alive() == [ReplicaState.READY]
            assert world.fleet.nodes()[0].standby_ready == 2
            await request

    run(main())


def test_machines_are_launched_for_what_finds_no_room_and_ended_when_idle():
    async def main() -> None:
        shape = MachineShape(memory_bytes=4 * GIB, boot_s=20)
        async with World(shape=shape, script=Script(drain_s=5), most=4) as world:
            await world.deploy(
                resources={"memory_mib": 3072},
                scaling={"max": 3, "target_concurrency": 1, "grace": 5},
                limits={"max_concurrency": 1},
            )
            requests = [world.request(seconds=60) for _ in range(3)]
            outcomes = await asyncio.gather(*requests)
            assert {it.error for it in outcomes} == {None}
            nodes = {it.endpoint.node_id for it in outcomes if it.endpoint}
            assert len(nodes) == 3
            await world.until(lambda: len(world.capacity.describe()) == 0, seconds=600)
            assert (await world.request()).error is None

    run(main())


def test_every_machine_dying_again_and_again_is_survived():
    async def main() -> None:
        async with World(shape=MachineShape(boot_s=3), most=2) as world:
            await world.deploy()
            for _ in range(5):
                request = world.request(seconds=1)
                await asyncio.sleep(0.1)
                for machine in world.capacity.machines():
                    await machine.kill()
                assert (await request).error is None
            assert world.load() == 0

    run(main())


def test_a_crash_of_the_process_is_heard_at_once():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"min": 1})
            await world.until(lambda: world.alive() == [ReplicaState.READY])
            replica_id = world.fleet.replicas()[0].replica_id
            world.machine().crash(replica_id)
            ended = world.fleet.replica(replica_id)
            assert ended is not None and ended.state is ReplicaState.FAILED

    run(main())


def test_the_simulation_needs_nothing_but_the_node_link():
    async def main() -> None:
        world = World()
        capacity = SimulatedCapacity(world.sessions, clock=LoopClock())
        tasks = TaskSet()
        capacity.add(A)
        await asyncio.sleep(1)
        assert capacity.machine(A).replicas() == ()
        await capacity.close()
        await tasks.close()

    run(main())
