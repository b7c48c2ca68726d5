"""What the autoscaler learns from the past, driven over simulated machines in virtual time."""

import asyncio
from datetime import UTC, datetime

import pytest

from control_plane.autoscaler.demand import IdleTime
from control_plane.autoscaler.experience import ASSUMED_COLD_START_S, Experience
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from infra.contracts.base import RevisionName
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage
from tests.fleet.world import SLOW, World, run

pytestmark = pytest.mark.real

READY, STARTING = ReplicaState.READY, ReplicaState.STARTING
SLOW_S = 25.0  # runtime 1 + weights 20 + engine 4


def experience(world: World, revision: str = "chat@1") -> Experience:
    return world.tracked(RevisionName(revision)).experience


async def idle_until_stopped(world: World) -> float:
    """Seconds from the last request to the end of the last replica."""
    began_at = world.now()
    await world.until(lambda: not world.alive(), seconds=10_000)
    return world.now() - began_at


# -- the grace -------------------------------------------------------------------------------------


def test_without_history_a_replica_is_kept_for_what_its_own_cold_start_cost():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"cold_penalty": 35})
            await asyncio.sleep(5)
            await world.request()
            assert await idle_until_stopped(world) == pytest.approx(SLOW_S + 35, abs=1.1)

    run(main())


def test_the_grace_follows_what_cold_starts_cost_now():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"cold_penalty": 0, "grace": "auto"})
            for _ in range(3):
                await world.request()
                await idle_until_stopped(world)
                await asyncio.sleep(3600)
            quick = Script(stages=(Climbing(Stage.WEIGHTS, 5),))  # its weights wait in memory now
            world.capacity._script = lambda _: quick
            for _ in range(3):
                await world.request()
                await idle_until_stopped(world)
                await asyncio.sleep(3600)
            assert experience(world).cold_start_s == pytest.approx(5, abs=0.01)
            await world.request()
            assert await idle_until_stopped(world) < 6.1

    run(main())


def test_a_model_that_is_called_every_ten_minutes_is_no_longer_kept_in_vain():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"cold_penalty": 60})
            await asyncio.sleep(5)
            kept_s = []
            for turn in range(30):
                await world.request(seconds=1)
                if turn % 2:  # people ask once more
                    await asyncio.sleep(8)
                    await world.request(seconds=1)
                kept_s.append(await idle_until_stopped(world))
                await asyncio.sleep(600)
            assert kept_s[0] == pytest.approx(60.3, abs=1.1)
            assert kept_s[-1] < 10

    run(main())


def test_a_fixed_grace_is_kept_whatever_was_learnt():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 20})
            for _ in range(5):
                await world.request()
                assert await idle_until_stopped(world) == pytest.approx(20, abs=1.1)
                await asyncio.sleep(900)

    run(main())


def test_a_new_revision_inherits_what_was_learnt():
    async def main() -> None:
        async with World() as world:
            await world.deploy()
            for _ in range(4):
                await world.request(seconds=0.5)
                await asyncio.sleep(30)
            before = experience(world)
            await world.deploy(scaling={"cold_penalty": 61})
            after = experience(world, "chat@2")
            assert after.keep_alive.idle_times == before.keep_alive.idle_times
            assert len(after.keep_alive.idle_times) == 3
            assert after.cold_start_s == before.cold_start_s != ASSUMED_COLD_START_S
            assert after.service_s == before.service_s == pytest.approx(0.5)

    run(main())


def test_an_idle_time_counts_once_and_from_when_the_replica_was_ready():
    learner = Experience(climbs=[5.0])
    for _ in range(3):
        learner.learn_idle_time(IdleTime(100.0, 150.0), ready_at=120.0, cold_penalty_s=60)
    learner.learn_idle_time(IdleTime(200.0, 210.0), ready_at=209.5, cold_penalty_s=60)
    learner.learn_idle_time(IdleTime(300.0, 400.0), ready_at=400.0, cold_penalty_s=60)
    assert learner.keep_alive.idle_times == (30.0, 100.0)


# -- how many --------------------------------------------------------------------------------------


def test_a_backlog_of_a_long_cold_start_starts_no_more_than_the_stream_needs():
    async def main() -> None:
        async with World(most=8) as world:
            scaling = {"max": 20, "target_concurrency": 4, "grace": 1}
            await world.deploy(scaling=scaling, resources={"memory_mib": 1024})
            await world.request(seconds=0.5)
            await idle_until_stopped(world)
            minute = Script(stages=(Climbing(Stage.WEIGHTS, 60),))
            world.capacity._script = lambda _: minute
            for _ in range(3):  # cold starts of a minute are nothing new
                experience(world).learn_climb(60, wait_s=60)
            started = world.started()
            requests = []
            for _ in range(70):
                requests.append(world.request(seconds=0.5))
                await asyncio.sleep(1)
            assert world.started() == started + 1
            assert all(it.error is None for it in await asyncio.gather(*requests))
            assert world.started() == started + 1

    run(main())


def test_a_stream_that_one_replica_cannot_carry_starts_more_while_the_first_still_loads():
    async def main() -> None:
        async with World(script=SLOW, most=8) as world:
            scaling = {"max": 20, "target_concurrency": 2, "grace": 300}
            await world.deploy(scaling=scaling, resources={"memory_mib": 1024})
            await world.request(seconds=1)
            await idle_until_stopped(world)
            requests = []
            for _ in range(200):
                requests.append(world.request(seconds=1))
                await asyncio.sleep(0.1)
            assert len(world.alive()) >= 5  # ten a second, a second each, two a replica
            assert all(it.error is None for it in await asyncio.gather(*requests))

    run(main())


def test_replicas_that_ran_before_the_control_plane_are_kept_until_it_knows_the_demand():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"max": 4, "target_concurrency": 1, "grace": 300})
            await asyncio.gather(*[world.request(seconds=30) for _ in range(4)])
            assert world.alive() == [READY] * 4
            survivors = dict(world.machine()._running)
        async with World(script=SLOW) as successor:  # a new control plane, the machine runs on
            await successor.deploy(scaling={"max": 4, "target_concurrency": 1, "grace": 300})
            successor.machine()._running = survivors
            successor.machine()._register()
            await asyncio.sleep(55)
            assert successor.alive() == [READY] * 4
            await successor.until(lambda: successor.alive().count(READY) == 1, seconds=20)

    run(main())


def test_a_model_that_nobody_ever_called_is_taken_to_be_like_others():
    async def main() -> None:
        async with World(script=SLOW, most=8) as world:
            scaling = {"max": 20, "target_concurrency": 2, "grace": 300}
            resources = {"memory_mib": 1024}
            await world.deploy("other", scaling=scaling, resources=resources)
            for _ in range(3):  # its requests take half a second, its climbs 25
                await world.request("other", seconds=0.5)
                await asyncio.sleep(400)
            await world.deploy("new", scaling=scaling, resources=resources)
            assert experience(world, "new@1").likely_service_s == pytest.approx(0.5, rel=0.01)
            started, requests = world.started(), []
            for _ in range(30):  # one a second while the first replica climbs
                requests.append(world.request("new", seconds=0.5))
                await asyncio.sleep(1)
            assert world.started() == started + 1
            assert all(it.error is None for it in await asyncio.gather(*requests))
            assert experience(world, "new@1").service_s == pytest.approx(0.5, rel=0.1)

    run(main())


def test_where_others_were_no_example_more_are_started_once_requests_take_longer():
    async def main() -> None:
        async with World(most=8) as world:
            scaling = {"max": 20, "target_concurrency": 2, "grace": 300}
            await world.deploy(scaling=scaling, resources={"memory_mib": 1024})
            experience(world).assumed_service_s = 0.1
            requests = []
            for _ in range(60):
                requests.append(world.request(seconds=20))
                await asyncio.sleep(1)
            assert len(world.alive()) >= 8  # one a second, twenty seconds each, two a replica
            assert all(it.error is None for it in await asyncio.gather(*requests))

    run(main())


# -- at certain times ------------------------------------------------------------------------------

SCHEDULED = {
    "max": 3,
    "grace": 60,
    "schedule": [{"cron": "30 22 * * *", "duration": 1800, "replicas": 2}],
}


def test_scheduled_replicas_are_ready_at_their_time_and_go_when_it_is_over():
    async def main() -> None:
        async with World(script=SLOW, shape=MachineShape(fork_s=1)) as world:
            await world.deploy(scaling=SCHEDULED)
            assert clock(world) == "22:13:20"
            await world.request()  # a cold start, from which it learns how long one takes
            await until_clock(world, "22:25:00")
            assert world.alive() == []
            await until_clock(world, "22:29:32")
            assert world.alive() == []
            await until_clock(world, "22:29:35")
            assert world.alive() == [STARTING] * 2
            await until_clock(world, "22:30:00")
            assert world.alive() == [READY] * 2
            assert world.explain().reason == "2 replicas ready, idle, kept by the schedule"
            await until_clock(world, "22:59:59")
            assert world.alive() == [READY] * 2 and world.started() == 3
            await until_clock(world, "23:00:05")
            assert READY not in world.alive()
            await until_clock(world, "22:29:00")
            assert world.started() == 3
            await until_clock(world, "22:30:00")
            assert world.alive() == [READY] * 2

    run(main())


def test_a_model_deployed_in_the_middle_of_its_time_is_started_at_once():
    async def main() -> None:
        async with World() as world:
            await until_clock(world, "22:45:00")
            await world.deploy(scaling=SCHEDULED)
            await asyncio.sleep(2)
            assert world.alive() == [READY] * 2

    run(main())


def clock(world: World) -> str:
    return f"{datetime.fromtimestamp(world.now(), UTC):%H:%M:%S}"


async def until_clock(world: World, time: str) -> None:
    """Sleeps until it is this time of day."""
    hour, minute, second = map(int, time.split(":"))
    now = datetime.fromtimestamp(world.now(), UTC)
    seconds = (hour - now.hour) * 3600 + (minute - now.minute) * 60 + second - now.second
    await asyncio.sleep((seconds - now.microsecond / 1e6) % 86_400)
