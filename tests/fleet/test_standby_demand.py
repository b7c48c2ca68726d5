"""How many workers are worth parking, by the starts of all models together."""

import asyncio
import random

import pytest

from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from control_plane.fleet.standby import StandbyLimits, size_standby, start_of, wishes_of
from control_plane.fleet.standby_demand import (
    LOOK_BACK_S,
    REFILL_S,
    Start,
    Starts,
    Worth,
    worth_parking,
)
from infra.contracts.stage import Rung, Stage
from tests.fleet.makers import GIB, a_revision
from tests.fleet.test_placement import a_node
from tests.fleet.world import World, run

HOUR_S = 3600.0


def bursts(size: int, *, every_s: float, hours: float, worth_s: float) -> list[Start]:
    """So many starts at once, again and again."""
    times = [it * every_s for it in range(int(hours * HOUR_S / every_s))]
    return [Start(at + 0.1 * number, worth_s) for at in times for number in range(size)]


def test_a_worker_that_is_rarely_used_is_not_worth_its_time():
    starts = bursts(1, every_s=600, hours=6, worth_s=300)
    assert worth_parking(starts, most=9, now=6 * HOUR_S) == Worth()


def test_starts_that_come_together_want_a_worker_each():
    starts = bursts(3, every_s=600, hours=6, worth_s=700)
    worth = worth_parking(starts, most=9, now=6 * HOUR_S)
    assert worth == Worth(3, "36 of the starts in 6 h wanted 3 at once")
    assert worth_parking(starts, most=2, now=6 * HOUR_S).workers == 2


def test_starts_that_find_a_refilled_pool_share_a_worker():
    apart = [Start(at * 100 + number * REFILL_S, 700) for at in range(100) for number in range(3)]
    assert worth_parking(apart, most=9, now=10_000).workers == 1


def test_two_starts_in_the_first_minute_are_no_rate():
    assert worth_parking([Start(0, 700), Start(1, 700)], most=9, now=60) == Worth()


def test_starts_of_long_ago_are_forgotten_and_order_does_not_matter():
    starts, dice = Starts(), random.Random(0)
    burst = bursts(2, every_s=300, hours=2, worth_s=700)
    dice.shuffle(burst)
    for start in burst:
        starts.add(start)
    assert starts.worth(most=9, now=2 * HOUR_S).workers == 2
    assert starts.worth(most=9, now=2 * HOUR_S + LOOK_BACK_S) == Worth()


@pytest.mark.parametrize("seed", range(20))
def test_no_other_number_would_have_cost_less(seed: int):
    dice, starts = random.Random(seed), []
    at = 0.0
    while at < 8 * HOUR_S:
        at += dice.expovariate(1 / 200)
        starts += [Start(at + dice.random(), 500) for _ in range(dice.choice([1, 1, 2, 5]))]
    now = max(start.at for start in starts)
    seconds = now - min(start.at for start in starts)

    def cost(workers: int) -> float:
        """Every start takes one if one is parked; it is back after a while."""
        missed_s, taken = 0.0, []
        for start in sorted(starts, key=lambda it: it.at):
            taken = [it for it in taken if it > start.at - REFILL_S]
            missed_s += 0.0 if len(taken) < workers else start.worth_s
            taken.append(start.at)
        return workers * seconds + missed_s

    best = min(range(12), key=cost)
    assert worth_parking(starts, most=12, now=now).workers == best


# -- a node's share --------------------------------------------------------------------------------


def test_what_starts_are_worth_is_shared_by_the_nodes_of_a_class_beyond_the_largest_wish():
    nodes = [a_node("a"), a_node("b"), a_node("small", memory_bytes=2 * GIB)]
    worth = {"cpu": Worth(8, "many came at once"), "A100": Worth(9)}

    def sizes(standby: int, parked: int) -> dict[str, tuple[int, str]]:
        wishes = wishes_of([a_revision(scaling={"standby": standby})])
        limits = StandbyLimits(parked=parked)
        found = size_standby(wishes, nodes, limits=limits, worth=worth)  # type: ignore[arg-type]
        return {node: (it.workers, it.reason) for node, it in found.items()}

    assert sizes(1, 4) == {
        "a": (3, "many came at once"),
        "b": (3, "many came at once"),
        "small": (1, "many came at once; an eighth of its memory holds no more"),
    }
    assert sizes(4, 5)["a"] == (4, "the largest scaling.standby")
    assert sizes(1, 2)["a"] == (2, "many came at once; PLATFORM_STANDBY_MAX")
    assert sizes(0, 4) == {"a": (0, ""), "b": (0, ""), "small": (0, "")}


def test_a_start_pays_for_what_it_would_wait_longer_in_memory_of_its_replicas_size():
    revision = a_revision(scaling={"cold_penalty": 60}, resources={"memory_mib": 1024})
    start = start_of(revision, at=5.0, runtime_s=2.0, climb_s=12.0)
    assert start == Start(5.0, (2.0 + 60 * 2 / 12) * 1024 / 256)


# -- the real loops --------------------------------------------------------------------------------


@pytest.mark.real
def test_models_that_are_called_together_find_a_parked_worker_each_the_more_often_they_are():
    async def main() -> None:
        script = Script(stages=(Climbing(Stage.RUNTIME, 0.05), Climbing(Stage.WEIGHTS, 1)))
        shape = MachineShape(spawn_s=4, fork_s=1)
        async with World(shape=shape, script=script) as world:
            for name in ("a", "b", "c"):
                await world.deploy(name, scaling={"grace": 1})
            await world.deploy("rare", scaling={"grace": 1})
            rungs = []
            for _ in range(40):
                requests = [world.request(name) for name in ("a", "b", "c")]
                await asyncio.sleep(0.01)
                replicas = [it.replica_id for it in world.fleet.replicas()]
                await asyncio.gather(*requests)
                rungs.append([world.fleet.from_rung(it) for it in replicas])
                await asyncio.sleep(90)
            (node,) = world.fleet.nodes()
            assert rungs[1] == [Rung.RUNTIME, Rung.NODE, Rung.NODE]
            assert rungs[-1] == [Rung.RUNTIME] * 3
            assert node.standby.workers == node.standby_ready == 3
            assert "wanted 3 at once" in node.standby.reason
            for _ in range(int(LOOK_BACK_S / 240) + 1):
                await world.request("rare")
                await asyncio.sleep(240)
            (node,) = world.fleet.nodes()
            assert (node.standby.workers, node.standby.reason) == (1, "the largest scaling.standby")

    run(main())


def test_where_no_model_wishes_for_standby_there_is_none():
    async def main() -> None:
        async with World() as world:
            for name in ("a", "b", "c"):
                await world.deploy(name, scaling={"grace": 1, "standby": 0})
            for _ in range(40):
                await asyncio.gather(*(world.request(name) for name in ("a", "b", "c")))
                await asyncio.sleep(90)
            assert [node.standby.workers for node in world.fleet.nodes()] == [0]

    run(main())
