"""After a take-over nothing is started beside what nodes have that are not back yet."""

import asyncio
from collections.abc import Mapping

import pytest

from control_plane.capacity.port import Ended
from control_plane.fleet.census import RETURN_S, MemoryCensusStore, Place
from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.revision import ReplicaState, Revision
from infra.errors import StoreUnavailable
from tests.fleet.test_replica import a_replica
from tests.fleet.world import CHAT_1, LOCAL, World, run

OLD, OTHER = NodeId("old"), NodeId("other")


def left_behind(**places: int) -> MemoryCensusStore:
    """What a control plane wrote before it ended: so many of chat@1, by node."""
    store = MemoryCensusStore()
    store.kept = {(NodeId(node), CHAT_1): count for node, count in places.items()}
    return store


def come_back(world: World, revision: Revision, node_id: NodeId, *, replicas: int) -> None:
    """A node finds the new control plane, with what it runs."""
    world.capacity.add(node_id)
    machine = world.capacity.machine(node_id)
    for number in range(replicas):
        replica = a_replica(
            replica_id=ReplicaId(f"{node_id}-{number}"), revision=revision, node_id=node_id
        )
        machine.restore(replica.assignment())


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_nodes_that_come_back_one_by_one_keep_their_replicas_and_no_other_starts(
    is_asked_for: bool,
):
    async def main() -> None:
        async with World(census=left_behind(old=2, other=1), most=3) as world:
            revision = await world.deploy(scaling={"min": 0 if is_asked_for else 3, "max": 3})
            request = world.request() if is_asked_for else None
            await asyncio.sleep(1)
            assert world.alive() == []
            assert world.explain().reason == "3 replicas expected: a node is not back yet"
            come_back(world, revision, OLD, replicas=2)
            await asyncio.sleep(2)
            come_back(world, revision, OTHER, replicas=1)
            await asyncio.sleep(20)

            assert world.alive() == [ReplicaState.READY] * 3 and world.started() == 3
            assert {it.node_id for it in world.fleet.replicas()} == {OLD, OTHER}
            assert world.moves(ReplicaState.DRAINING) == []
            outcome = None if request is None else await request
            assert outcome is None or (outcome.error is None and outcome.attempts == 1)

    run(main())


def test_what_was_not_there_before_starts_at_once():
    async def main() -> None:
        async with World(census=left_behind(old=1), most=2) as world:
            await world.deploy(scaling={"min": 3, "max": 3})
            await world.deploy("new")
            outcome = await world.request("new")
            assert outcome.started_at is not None and outcome.started_at - outcome.arrived_at < 2
            assert len(world.alive()) == 2  # the third may be on its way

    run(main())


def test_a_node_that_comes_back_with_less_is_made_up_for_at_once():
    async def main() -> None:
        async with World(census=left_behind(old=2), most=2) as world:
            revision = await world.deploy(scaling={"min": 2, "max": 3})
            await asyncio.sleep(1)
            come_back(world, revision, OLD, replicas=1)
            await world.until(lambda: len(world.alive()) == 2, seconds=0.5)

    run(main())


def test_a_node_that_does_not_come_back_is_waited_for_no_longer_than_agents_take_to_dial_again():
    async def main() -> None:
        async with World(census=left_behind(old=1)) as world:
            await world.deploy()
            outcome = await world.request()
            assert outcome.error is None and outcome.started_at is not None
            waited_s = outcome.started_at - outcome.arrived_at
            assert RETURN_S - 0.1 < waited_s < RETURN_S + 2
            await asyncio.sleep(2)
            assert (await world.census._store.read()) == {(LOCAL, CHAT_1): 1}

    run(main())


def test_for_a_machine_that_is_known_to_be_gone_nobody_waits():
    async def main() -> None:
        async with World(census=left_behind(old=1)) as world:
            await world.deploy()
            request = world.request()
            await asyncio.sleep(0.5)
            world.census.heard(Ended(OLD, "spot"))
            outcome = await request
            assert outcome.started_at is not None and outcome.started_at - outcome.arrived_at < 1

    run(main())


def test_what_runs_is_written_within_two_seconds_and_by_nobody_who_does_not_lead():
    async def main() -> None:
        store = MemoryCensusStore()
        async with World(census=store, most=2) as world:
            await world.deploy(scaling={"min": 2, "max": 2})
            await asyncio.sleep(2)
            assert store.kept == {(LOCAL, CHAT_1): 2}
            world.census._is_leading = lambda: False
            await world.deployments.delete(world.deployments.all()[0].model, now=world.now())
            await asyncio.sleep(5)
            assert store.kept == {(LOCAL, CHAT_1): 2} and world.alive() == []
            world.census._is_leading = lambda: True
            await world.census.load()
            assert world.census.expected(CHAT_1) == 0  # its node is here, and says what it has
            await asyncio.sleep(2)
            assert store.kept == {}

    run(main())


def test_what_could_not_be_written_is_written_when_the_store_is_back():
    class Fickle(MemoryCensusStore):
        is_away = True

        async def write(self, counts: Mapping[Place, int]) -> None:
            if self.is_away:
                raise StoreUnavailable("away")
            await super().write(counts)

    async def main() -> None:
        store = Fickle()
        async with World(census=store) as world:
            await world.deploy(scaling={"min": 1})
            await asyncio.sleep(3)
            assert store.kept == {}
            store.is_away = False
            await asyncio.sleep(2)
            assert store.kept == {(LOCAL, CHAT_1): 1}

    run(main())
