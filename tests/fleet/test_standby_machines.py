"""How many machines wait stopped: what a wish for one was worth, and what is told the provider."""

import asyncio

import pytest

from control_plane.capacity.port import MachineKind
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.fleet.standby_demand import Starts, worth_parking
from control_plane.fleet.standby_machines import STOPPED_PRICE, Climbs, Wishes, start_of_machine
from infra.contracts.stage import Rung
from infra.errors import NoCapacity, ProviderUnavailable
from tests.fleet.world import LOCAL, World, run

GPU = MachineShape(gpus=1, gpu="l4", boot_s=26.0, start_s=10.0)
L4 = MachineKind("l4")
DAY_S = 86400.0


def world(most: int = 4) -> World:
    return World(shape=GPU, most=8, has_standby=True, standby_machines=most)


def stopped(one: World) -> int:
    return sum(machine.rung is Rung.STOPPED for machine in one.capacity.describe())


async def wish(one: World, *models: str) -> list[float]:
    """Requests at once, each to a model of its own at zero; how long each waited to be served."""
    requests = [one.request(model) for model in models]
    outcomes = [await request for request in requests]
    return [it.started_at - it.arrived_at for it in outcomes if it.started_at is not None]


def test_a_wish_is_worth_what_standby_would_have_spared_it_in_time_of_a_stopped_machine() -> None:
    start = start_of_machine(at=5.0, cold_penalty=60.0, climbs=Climbs(26.0, 10.0))

    assert start.at == 5.0
    assert start.worth_s == pytest.approx((16 + 60 * 16 / 26) / STOPPED_PRICE)


def test_standby_that_is_no_faster_than_a_launch_is_worth_nothing() -> None:
    assert start_of_machine(at=0.0, cold_penalty=600.0, climbs=Climbs(10.0, 12.0)).worth_s == 0


def test_wishes_within_the_time_of_a_refill_want_a_machine_each() -> None:
    starts = Starts()
    for day_s in range(0, int(DAY_S), 900):  # 96 times a day two, half a minute apart
        for at in (day_s, day_s + 30.0):
            starts.add(start_of_machine(at=at, cold_penalty=60.0, climbs=Climbs()))

    assert starts.worth(most=4, now=DAY_S, refill_s=52.0).workers == 2
    assert starts.worth(most=4, now=DAY_S, refill_s=6.0).workers == 1
    assert starts.worth(most=1, now=DAY_S, refill_s=52.0).workers == 1


def test_a_machine_is_kept_from_as_many_wishes_on_as_pay_for_a_day_of_it() -> None:
    worth_s = start_of_machine(at=0.0, cold_penalty=60.0, climbs=Climbs()).worth_s
    enough = int(DAY_S / worth_s) + 1

    def kept(wishes: int) -> int:
        gap_s = DAY_S / wishes
        starts = [
            start_of_machine(at=number * gap_s, cold_penalty=60.0, climbs=Climbs())
            for number in range(wishes)
        ]
        return worth_parking(starts, most=4, now=DAY_S, refill_s=52.0).workers

    assert (kept(enough - 1), kept(enough)) == (0, 1)


@pytest.mark.real
def test_wishes_that_recur_fill_standby_and_are_then_served_from_it() -> None:
    async def main() -> None:
        async with world() as one:
            await one.capacity.terminate(LOCAL)
            for model in ("a", "b"):
                await one.deploy(model, resources={"gpus": 1}, scaling={"grace": 10})

            first = await wish(one, "a", "b")
            waits = first
            for _ in range(12):
                await asyncio.sleep(600)
                waits = await wish(one, "a", "b")

            assert first == pytest.approx([27.27] * 2, abs=0.1)
            assert waits == pytest.approx([11.27] * 2, abs=0.1)
            await asyncio.sleep(600)
            assert stopped(one) == 2

            await asyncio.sleep(2 * DAY_S)
            assert stopped(one) == 0, "what was a day ago is worth nothing"

    run(main())


def test_a_machine_that_came_for_another_is_not_launched_a_second_time() -> None:
    async def main() -> None:
        async with world(most=0) as one:
            await one.capacity.terminate(LOCAL)
            await one.capacity.hold(L4, 1)
            await asyncio.sleep(60)
            for model in ("a", "b"):
                await one.deploy(model, resources={"gpus": 1}, scaling={"grace": 10})
            arrivals: list[str] = []
            one.machines.subscribe_arrived(lambda it: arrivals.append(it.owner))

            one.capacity.next_errors.append(NoCapacity("it does not start"))  # so a's is launched
            first = one.request("a", seconds=60)
            await asyncio.sleep(1)
            second = one.request("b")
            outcomes = [await first, await second]
            await asyncio.sleep(100)

            waits = [it.started_at - it.arrived_at for it in outcomes if it.started_at is not None]
            assert waits == pytest.approx([12.27, 26.27], abs=0.1), "a takes b's, which is faster"
            assert arrivals == ["b@1", "a@1"]
            assert len(one.capacity.machines()) == 2

    run(main())


def test_a_machine_idles_on_for_as_long_as_wishes_pay_for_all_of_its_time() -> None:
    async def main() -> None:
        async with world() as one:
            await one.capacity.terminate(LOCAL)
            scaling = {"grace": 10, "cold_penalty": 3000}
            await one.deploy("a", resources={"gpus": 1}, scaling=scaling)
            found: list[bool] = []
            one.machines.subscribe_arrived(lambda it: found.append(it.was_idle))
            waits = []
            for _ in range(6):
                waits += await wish(one, "a")
                await asyncio.sleep(2400)

            assert waits[0] == pytest.approx(27.27, abs=0.1)
            assert max(waits[2:]) < 2
            assert found == [False, False, True, True, True, True], "who finds it needed one, too"
            assert len(one.capacity.machines()) == 1 and stopped(one) == 0

    run(main())


def test_the_machine_that_is_worth_running_does_not_wait_stopped_as_well() -> None:
    wishes = Wishes()
    for at in (0.0, 2400.0, 2420.0):
        wishes.add(at=at, cold_penalty=3000, climbs=Climbs())

    def waiting(*, most: int, now: float) -> tuple[int, int]:
        worth = wishes.worth(most=most, now=now, refill_s=52.0)
        return worth.idle, worth.stopped

    assert waiting(most=4, now=3600) == (1, 1)
    assert waiting(most=1, now=3600) == (1, 0)
    assert waiting(most=4, now=4 * 3600) == (0, 2)
    assert waiting(most=4, now=DAY_S + 2430) == (0, 0)


def test_no_more_are_kept_than_may_be() -> None:
    async def main() -> None:
        async with world(most=0) as one:
            await one.capacity.terminate(LOCAL)
            await one.deploy("a", resources={"gpus": 1}, scaling={"grace": 10})
            for _ in range(6):
                await wish(one, "a")
                await asyncio.sleep(600)
                assert stopped(one) == 0

    run(main())


def test_a_provider_that_refuses_is_told_again() -> None:
    async def main() -> None:
        async with world() as one:
            await one.capacity.terminate(LOCAL)
            await one.deploy("a", resources={"gpus": 1}, scaling={"grace": 10})
            hold, refusals = one.capacity.hold, [ProviderUnavailable("away")] * 2

            async def refuses(kind: MachineKind, stopped: int) -> None:
                if refusals:
                    raise refusals.pop()
                await hold(kind, stopped)

            one.capacity.hold = refuses  # type: ignore[method-assign]
            for _ in range(6):
                await wish(one, "a")
                await asyncio.sleep(600)

            assert (refusals, stopped(one)) == ([], 1)

    run(main())
