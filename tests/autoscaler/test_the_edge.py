"""Bad luck between zero and one: clocks, nodes, leaders and specs that change at the wrong time."""

import asyncio

import pytest

from control_plane.capacity.simulated.script import Script
from control_plane.fleet.node_sessions import LeaseTerms
from control_plane.fleet.replica import Replica
from infra.contracts.base import ModelName, NodeId, RevisionName
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage, StageTiming
from infra.virtual_time import LoopClock
from tests.fleet.makers import a_registration
from tests.fleet.test_replica import a_replica, a_report
from tests.fleet.world import CHAT_1, CRASH, SLOW, World, run

READY, STARTING, DRAINING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING
CHAT = ModelName("chat")
HOUR_S = 3600.0


class SteppingClock(LoopClock):
    """A clock that somebody can set back."""

    behind_s = 0.0

    def now(self) -> float:
        return super().now() - SteppingClock.behind_s


@pytest.fixture(autouse=True)
def on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SteppingClock, "behind_s", 0.0)


# -- the clock -------------------------------------------------------------------------------------


def test_a_clock_that_steps_back_ends_nothing_that_serves_and_keeps_nothing_for_longer():
    async def main() -> None:
        async with World(clock=SteppingClock()) as world:
            await world.deploy(scaling={"grace": 20})
            await world.deploy("other", scaling={"grace": 20})
            await world.request("other")
            served = world.request(seconds=40)
            await asyncio.sleep(10)

            SteppingClock.behind_s = HOUR_S
            await asyncio.sleep(25)

            assert world.alive("other") == [], "its grace began anew when the clock was set"
            assert world.alive() == [READY]
            assert (await served).attempts == 1
            assert (await world.request("other")).error is None
            await world.until(lambda: not world.alive(), seconds=23)

    run(main())


def test_a_clock_that_steps_back_counts_who_is_there_from_then_on():
    async def main() -> None:
        async with World(clock=SteppingClock()) as world:
            scaling = {"max": 4, "target_concurrency": 1, "grace": 20}
            await world.deploy(scaling=scaling, limits={"max_concurrency": 1})
            await world.request()
            SteppingClock.behind_s = HOUR_S

            requests = [world.request(seconds=60) for _ in range(4)]

            await world.until(lambda: world.alive() == [READY] * 4, seconds=15)
            assert [(await it).error for it in requests] == [None] * 4

    run(main())


def test_stages_that_a_node_measured_in_the_future_keep_nothing_alive():
    """Its clock followed that of a control plane which ran ahead of the one that takes over."""

    async def main() -> None:
        async with World(terms=LeaseTerms(lease_s=600, look_s=100)) as world:
            await world.deploy(scaling={"grace": 20})
            ahead = world.now() + HOUR_S
            stages = (StageTiming(stage=Stage.RUNTIME, started_at=ahead, seconds=1.0),)
            running = a_report(READY, replica_id="chat-1-x", host="h", port=1, stages=stages)
            world.sessions.register(a_registration("n2", replicas=(running,)), now=world.now())

            assert (await world.request()).error is None
            assert world.started() == 1, "the one that was adopted"
            await asyncio.sleep(25)

            assert world.alive() == [DRAINING]
            assert world.tracked().experience.climbs == ()

    run(main())


# -- replicas of nobody ----------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_a_replica_that_registers_after_its_model_was_removed_serves_nobody_and_is_ended(
    again: bool,
):
    async def main() -> None:
        async with World(script=SLOW, most=2) as world:
            await world.deploy(scaling={"grace": 60})
            request = world.request()
            await asyncio.sleep(10)
            machine = world.machine()
            machine.partition()
            await world.deployments.delete(CHAT, now=world.now())
            assert (await request).error is not None
            await asyncio.sleep(20)
            assert [it.state for it in machine.replicas()] == [READY], "nobody could tell it"
            if again:
                await world.deploy(scaling={"grace": 60})

            machine.heal()
            await asyncio.sleep(0.5)

            assert machine.replicas() == () and world.fleet.replicas() == ()
            assert world.scaled() == ({RevisionName("chat@2")} if again else set())
            if again:
                outcome = await world.request()
                assert outcome.error is None and outcome.endpoint is not None
                assert outcome.endpoint.revision == "chat@2"

    run(main())


def test_a_control_plane_that_starts_after_the_model_was_removed_ends_what_still_loads():
    async def main() -> None:
        async with World(script=SLOW, most=2) as world:
            revision = await world.deploy()
            await world.deployments.delete(CHAT, now=world.now())
            world.capacity.add(NodeId("old"))
            machine = world.capacity.machine(NodeId("old"))
            machine.restore(a_replica(revision=revision, node_id=NodeId("old")).assignment())

            await asyncio.sleep(1)

            assert machine.replicas() == () and world.fleet.replicas() == ()

    run(main())


# -- nodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_noticed", [False, True])
def test_a_node_lost_while_loading_for_nobody_starts_nothing_elsewhere(is_noticed: bool):
    async def main() -> None:
        async with World(script=SLOW, most=2) as world:
            await world.deploy(scaling={"grace": 20})
            request = world.request()
            await asyncio.sleep(5)
            request.cancel()

            await world.machine().kill(is_noticed=is_noticed)
            await asyncio.sleep(100)

            assert world.alive() == [] and world.started() == 1
            assert world.reconciler.standing(CHAT_1).crash.failures == 0, "it says nothing of it"

    run(main())


def test_every_node_lost_while_loading_is_no_crash_of_the_model_and_who_waits_is_served():
    async def main() -> None:
        async with World(script=SLOW, most=1) as world:
            await world.deploy()
            request = world.request()
            for _ in range(5):
                await asyncio.sleep(10)
                machine, *_ = world.capacity.machines()
                await machine.kill()
            outcome = await request
            assert outcome.error is None and outcome.attempts == 1
            assert world.reconciler.standing(CHAT_1).crash.failures == 0
            assert world.started() == 6

    run(main())


def test_a_node_that_comes_back_ready_after_its_loss_while_another_loads_leaves_one():
    async def main() -> None:
        async with World(script=SLOW, most=2) as world:
            await world.deploy(scaling={"grace": 600})
            request = world.request()
            await asyncio.sleep(10)
            world.machine().partition()
            await world.until(lambda: len(world.moves(ReplicaState.LOST)) == 1)
            await asyncio.sleep(14)  # it is ready by now, and the other one is not

            world.machine().heal()
            outcome = await request

            assert outcome.error is None and outcome.endpoint is not None
            assert outcome.endpoint.node_id != "local"
            await asyncio.sleep(5)
            assert world.alive() == [READY] and world.machine().replicas() == ()

    run(main())


# -- specs -----------------------------------------------------------------------------------------


def test_a_spec_changed_twice_while_it_loads_serves_every_waiter_and_leaves_the_last():
    async def main() -> None:
        async with World(script=SLOW) as world:
            requests = []
            for grace in (60, 50, 40):
                await world.deploy(scaling={"grace": grace})
                requests.append(world.request())
                await asyncio.sleep(5)

            outcomes = [await it for it in requests]

            served_by = [it.endpoint.revision for it in outcomes if it.endpoint is not None]
            assert served_by == ["chat@1", "chat@2", "chat@3"]
            await world.until(lambda: len(world.fleet.replicas()) == 1, seconds=5)
            assert [it.revision.number for it in world.fleet.replicas()] == [3]

    run(main())


def test_a_spec_that_cannot_start_replaces_one_that_loads_and_leaves_its_waiters_alone():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"grace": 60})
            old = world.request()
            await asyncio.sleep(5)
            world.capacity.next_scripts.extend([Script(fails_after=0, failure=CRASH)] * 3)
            await world.deploy(scaling={"grace": 50})
            new = world.request()

            assert (await new).error is not None
            assert (await old).error is None

    run(main())


def test_a_spec_with_a_smaller_maximum_while_more_load_than_that_stays_within_it():
    async def main() -> None:
        peak: dict[str, int] = {}
        async with World(script=SLOW) as world:

            def count(_: Replica | None, after: Replica) -> None:
                name = after.revision.name
                kept = [it for it in world.fleet.of_revision(name) if it.is_serving_or_loading]
                peak[name] = max(peak.get(name, 0), len(kept))

            world.fleet.subscribe(count)
            sizes = {"target_concurrency": 1, "grace": 30}
            limits = {"limits": {"max_concurrency": 1}}
            await world.deploy(scaling={"max": 4, **sizes}, **limits)
            requests = [world.request(seconds=5) for _ in range(4)]
            await asyncio.sleep(5)
            await world.deploy(scaling={"max": 1, **sizes}, **limits)
            requests += [world.request(seconds=5) for _ in range(4)]

            assert [(await it).error for it in requests] == [None] * 8
            assert peak == {"chat@1": 4, "chat@2": 1}

    run(main())
