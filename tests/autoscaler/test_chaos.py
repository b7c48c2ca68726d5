"""Hours of bad luck in virtual time: the invariants hold at every instant, and all ends at zero."""

import asyncio
import random

import pytest

from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from control_plane.fleet.replica import Replica
from infra.contracts.base import ModelName
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage
from tests.fleet.world import CRASH, Outcome, World, run

MODELS = ("a", "b", "c")


class Watcher:
    """Checks at every change of a replica what must hold at every instant."""

    def __init__(self, world: World) -> None:
        self._world = world
        world.fleet.subscribe(self._look)

    def _look(self, before: Replica | None, after: Replica) -> None:
        fleet, spec = self._world.fleet, after.revision.spec
        kept = [it for it in fleet.of_revision(after.revision.name) if it.is_serving_or_loading]
        assert len(kept) <= spec.scaling.max
        for node in fleet.nodes():
            needs = (
                it.revision.spec.resources.memory_mib or 0 for it in fleet.on_node(node.node_id)
            )
            assert sum(needs) << 20 <= node.memory_bytes
        if before is not None and before.is_loading and after.state is ReplicaState.STOPPED:
            current = self._world.deployments.get(after.model)
            assert current is None or current.name != after.revision.name  # P7


def a_script(chance: random.Random) -> Script:
    stages = (
        Climbing(Stage.RUNTIME, chance.uniform(0, 0.1)),
        Climbing(Stage.WEIGHTS, chance.uniform(0, 20)),
        Climbing(Stage.ENGINE, chance.uniform(0, 1)),
    )
    kind = chance.random()
    return Script(
        stages=stages,
        fails_after=chance.randrange(4) if kind < 0.2 else None,
        failure=CRASH if kind < 0.1 else None,
        lives_s=chance.uniform(0, 300) if 0.2 < kind < 0.3 else None,
        drain_s=chance.uniform(0, 60),
    )


async def disturb(world: World, chance: random.Random) -> None:
    machines = world.capacity.machines()
    if not machines:
        return
    machine = chance.choice(machines)
    match chance.randrange(6):
        case 0:
            await machine.kill(is_noticed=chance.random() < 0.5)
        case 1:
            await machine.restart_agent()
        case 2:
            machine.partition()
            await asyncio.sleep(chance.uniform(0, 30))
            machine.heal()
        case 3 if running := machine.replicas():
            machine.crash(chance.choice(running).replica_id)
        case 4:
            name = chance.choice(MODELS)
            await world.deploy(name, **sections(chance))
        case 5:
            name = ModelName(chance.choice(MODELS))
            if world.deployments.get(name) is not None:
                await world.deployments.delete(name, now=world.now())


def sections(chance: random.Random) -> dict[str, dict[str, float]]:
    return {
        "scaling": {
            "max": chance.randrange(1, 4),
            "target_concurrency": chance.choice([0.5, 1, 4]),
            "grace": chance.choice([0, 1, 30]),
            "standby": chance.randrange(3),
        },
        "resources": {"memory_mib": chance.choice([1024, 4096, 9000])},
        "limits": {"max_concurrency": chance.randrange(1, 9)},
    }


@pytest.mark.parametrize("seed", range(6))
def test_bad_luck(seed: int):
    chance = random.Random(seed)

    async def main() -> None:
        world = World(shape=MachineShape(boot_s=chance.uniform(0, 20)), most=2)
        world.capacity._script = lambda _: a_script(chance)
        Watcher(world)
        async with world:
            for name in MODELS:
                await world.deploy(name, **sections(chance))
            requests: list[asyncio.Task[Outcome]] = []
            for _ in range(150):
                for _ in range(chance.choice([0, 1, 1, 2, 20])):
                    seconds = chance.expovariate(1)
                    requests.append(world.request(chance.choice(MODELS), seconds=seconds))
                if requests and chance.random() < 0.1:
                    chance.choice(requests).cancel()
                if chance.random() < 0.3:
                    await disturb(world, chance)
                await asyncio.sleep(chance.expovariate(1 / 4))
            world.capacity._script = lambda _: Script()
            for machine in world.capacity.machines():
                machine.heal()
            done, pending = await asyncio.wait(requests, timeout=1500)
            assert not pending
            assert all(it.cancelled() or it.exception() is None for it in done)
            for name in MODELS:
                if world.deployments.get(ModelName(name)) is not None:
                    await world.deployments.delete(ModelName(name), now=world.now())
            await asyncio.sleep(120)
            assert world.fleet.replicas() == ()
            assert all(meter.waiting == meter.in_flight == 0 for meter in world.gateway.meters())
            assert world.scaled() == set() and world.reconciler._plans == {}
            assert all(machine.replicas() == () for machine in world.capacity.machines())

    run(main())
