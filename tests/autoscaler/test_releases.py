"""What is scaled, kept and let sleep while a model's requests are split between revisions."""

import asyncio
from collections import Counter

from infra.contracts.base import RevisionName
from infra.contracts.revision import ReplicaState
from tests.fleet.makers import CHAT
from tests.fleet.world import LOCAL, SLOW, World, run

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
