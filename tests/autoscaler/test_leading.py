"""Only the leader decides, and what came before its reign is not forgotten."""

import asyncio

from infra.contracts.revision import ReplicaState
from tests.fleet.world import World, run


def test_who_does_not_lead_starts_nothing_and_who_begins_to_lead_starts_what_is_due():
    async def main() -> None:
        world = World()
        is_leading = False
        world.autoscaler._is_leading = lambda: is_leading
        async with world:
            await world.deploy("kept", scaling={"min": 1})
            await world.deploy("asked")
            request = world.request("asked")
            await asyncio.sleep(60)
            assert world.fleet.replicas() == ()
            is_leading = True
            outcome = await request
            assert outcome.error is None and outcome.started_at is not None
            assert outcome.started_at - outcome.arrived_at < 63
            assert world.alive("kept") == [ReplicaState.READY]

    run(main())


def test_who_no_longer_leads_stops_nothing():
    async def main() -> None:
        world = World()
        is_leading = True
        world.autoscaler._is_leading = lambda: is_leading
        async with world:
            await world.deploy(scaling={"grace": 1})
            await world.request()
            is_leading = False
            await asyncio.sleep(600)
            assert world.alive() == [ReplicaState.READY]
            is_leading = True
            await world.until(lambda: not world.alive(), seconds=3)

    run(main())
