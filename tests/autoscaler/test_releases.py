"""What is scaled, kept and let sleep while a model's requests are split between revisions."""

import asyncio
from collections import Counter

from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Script
from infra.contracts.base import RevisionName
from infra.contracts.revision import ModelState, ReplicaState, Revision
from tests.fleet.makers import CHAT, GIB, a_spec
from tests.fleet.world import BROKEN, LOCAL, SLOW, World, run

ONE, TWO = RevisionName("chat@1"), RevisionName("chat@2")


def ready(world: World) -> dict[str, int]:
    """READY replicas by revision."""
    replicas = (it for it in world.fleet.replicas() if it.state is ReplicaState.READY)
    return dict(Counter(it.revision.name for it in replicas))


def test_every_revision_in_traffic_keeps_its_minimum_and_no_other_does():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"min": 1, "grace": 1})
            await world.deploy(scaling={"min": 2, "max": 2, "grace": 1})
            await world.until(lambda: ready(world) == {TWO: 2}, seconds=5)

            await world.deployments.split(CHAT, {ONE: 10, TWO: 90})
            await world.until(lambda: ready(world) == {ONE: 1, TWO: 2}, seconds=5)

            await world.deployments.rollback(CHAT, ONE)
            await world.until(lambda: ready(world) == {ONE: 1}, seconds=5)
            await asyncio.sleep(600)
            assert ready(world) == {ONE: 1}

    run(main())


def test_each_request_of_a_split_is_served_by_the_revision_it_was_given():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 30})
            await world.deploy(scaling={"grace": 40})
            await world.deployments.split(CHAT, {ONE: 20, TWO: 80})
            outcomes = await asyncio.gather(*(world.request() for _ in range(100)))
            served = Counter(it.endpoint.revision for it in outcomes if it.endpoint)
            assert served == {ONE: 20, TWO: 80}
            assert ready(world) == {ONE: 1, TWO: 1}
            explained = world.explain()
            assert explained.desired_replicas == 2
            assert "chat@2 (80 %): 1 replica ready" in explained.reason
            assert "chat@1 (20 %): 1 replica ready" in explained.reason
            await world.until(lambda: world.alive() == [], seconds=60)

    run(main())


def test_a_rollback_while_the_new_revision_starts_serves_its_waiters_and_then_ends_it():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"grace": 60})
            await world.deploy(scaling={"grace": 50})
            waiting = world.request()
            await asyncio.sleep(5)
            await world.deployments.rollback(CHAT)
            outcome = await waiting
            assert outcome.endpoint is not None and outcome.endpoint.revision == TWO
            await world.until(lambda: world.alive() == [], seconds=5)
            assert world.started() == 1

    run(main())


def test_a_canary_begins_with_what_was_learnt_of_the_revision_before_it():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy()
            await world.request()
            learnt = world.autoscaler.keep_alive(ONE)
            await world.deployments.deploy(
                world.deployments.get(CHAT).spec.model_copy(update={"shared": True}),  # type: ignore[union-attr]
                takes_traffic=False,
                now=world.now(),
            )
            assert world.autoscaler.keep_alive(TWO) is None, "nobody needs it yet"
            await world.deployments.split(CHAT, {ONE: 90, TWO: 10})
            assert world.autoscaler.keep_alive(TWO) == learnt

    run(main())


def test_what_is_in_traffic_may_sleep_and_what_left_may_not():
    async def main() -> None:
        async with World() as world:
            await world.until(lambda: world.fleet.node(LOCAL))
            await world.deploy(scaling={"sleep": 60, "grace": 1})
            await world.deploy(scaling={"sleep": 90, "grace": 1})

            def may_sleep() -> set[str]:
                node = world.fleet.node(LOCAL)
                assert node is not None
                return set(node.standby.sleep.revisions)

            assert may_sleep() == {TWO}
            await world.deployments.split(CHAT, {ONE: 1, TWO: 99})
            assert may_sleep() == {ONE, TWO}
            await world.deployments.rollback(CHAT)
            assert may_sleep() == {TWO}

    run(main())


async def dark(world: World, **scaling: float) -> Revision:
    """A revision of `chat` that gets no requests."""
    spec = a_spec(scaling=scaling)
    return await world.deployments.deploy(spec, takes_traffic=False, now=world.now())


def test_a_revision_is_warmed_before_all_requests_are_switched_to_it():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"grace": 600})
            await world.request()
            new = await dark(world, grace=500)
            explained = world.autoscaler.warm(new, 1, until=world.now() + 60)
            assert explained.state is ModelState.STARTING
            await world.until(lambda: ready(world) == {ONE: 1, TWO: 1}, seconds=30)
            [record] = world.autoscaler.decisions(TWO)
            assert record.decision.reason == "1 warmed for requests to come"

            await world.deployments.rollback(CHAT, TWO)

            asked_at = world.now()
            outcome = await world.request()
            assert outcome.endpoint is not None and outcome.endpoint.revision == TWO
            assert outcome.started_at == asked_at, "no cold start"
            await world.until(lambda: ready(world) == {TWO: 1}, seconds=5)
            assert world.started() == 2
            await asyncio.sleep(120)
            assert ready(world) == {TWO: 1}
            await world.deployments.rollback(CHAT, ONE)
            warmed_at = world.now()
            world.autoscaler.warm(new, 1, until=warmed_at + 600)
            await world.deployments.rollback(CHAT, TWO)
            await world.until(lambda: ready(world) == {}, seconds=510)
            assert world.now() < warmed_at + 600, "it is scaled as any other from the switch on"

    run(main())


def test_what_was_warmed_in_vain_goes_when_its_time_is_over():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 600})
            new = await dark(world, max=3)
            for _ in range(4):  # asked again, it lasts longer
                world.autoscaler.warm(new, 3, until=world.now() + 60)
                await asyncio.sleep(50)
                assert ready(world) == {TWO: 3}
            await asyncio.sleep(15)
            assert ready(world) == {}
            assert world.scaled() == {ONE}
            assert set(world.reconciler._plans) <= {ONE}

    run(main())


def test_what_is_warmed_is_bounded_by_its_maximum_and_goes_with_its_model():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy()
            new = await dark(world, max=2)
            world.autoscaler.warm(new, 9, until=world.now() + 600)
            await asyncio.sleep(10)
            assert world.started() == 2
            await world.deployments.delete(CHAT, now=world.now())
            await world.until(lambda: not world.alive(), seconds=5)
            assert world.scaled() == set()

    run(main())


def test_who_warms_what_cannot_start_hears_why_and_the_old_one_serves_on():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 600})
            await world.request()
            new = await dark(world, grace=500)
            world.capacity.next_scripts.append(Script(fails_after=1, failure=BROKEN))
            world.autoscaler.warm(new, 1, until=world.now() + 60)
            await asyncio.sleep(3)
            explained = world.autoscaler.warm(new, 1, until=world.now() + 60)
            assert explained.state is ModelState.FAILING
            assert "no such architecture" in explained.reason
            assert ready(world) == {ONE: 1}

    run(main())


def test_an_idle_replica_makes_no_room_for_the_one_that_is_warmed_to_replace_it():
    async def main() -> None:
        async with World(shape=MachineShape(memory_bytes=3 * GIB)) as world:
            resources = {"resources": {"memory_mib": 1024}}
            await world.deploy(scaling={"grace": 600}, **resources)
            await world.request()
            spec = a_spec(scaling={"max": 4}, **resources)
            new = await world.deployments.deploy(spec, takes_traffic=False, now=world.now())
            for _ in range(20):
                explained = world.autoscaler.warm(new, 4, until=world.now() + 60)
                await asyncio.sleep(1)
            assert ready(world) == {ONE: 1, TWO: 2}
            assert "others wait for room" in explained.reason

    run(main())
