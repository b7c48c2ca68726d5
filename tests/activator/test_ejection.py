"""Replicas that fail: how long they rest, how they come back, and that one always may."""

import asyncio
from contextlib import suppress

import pytest

from control_plane.activator.ejection import rest_s
from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.contracts.base import ReplicaId
from infra.contracts.model_spec import Limits
from infra.contracts.revision import ReplicaState
from infra.errors import PlatformError
from tests.activator.world import World, says, scenario, spec


class Flaky:
    """A replica that dies at once until it is well; `asked` are the times it was tried."""

    def __init__(self, world: World, *, seconds: float = 0.0) -> None:
        self._world = world
        self._seconds = seconds
        self.is_well = False
        self.asked: list[float] = []

    async def __call__(self, request: ReplicaRequest, wire: Wire) -> None:
        self.asked.append(self._world.clock.now())
        if self.is_well:
            await says("well", seconds=self._seconds)(request, wire)
        else:
            wire.break_off()


def taken(world: World, replica_id: ReplicaId) -> int:
    replica = world.fleet.replica(replica_id)
    assert replica is not None
    return world.lines.in_flight(replica)


def test_rests_double_up_to_half_a_minute() -> None:
    assert [rest_s(failures) for failures in (1, 2, 3, 4, 5, 6, 7, 1000)] == [
        *(1, 2, 4, 8, 16),
        *(30, 30, 30),
    ]


@scenario
async def test_a_replica_that_keeps_failing_is_tried_ever_more_seldom(world: World) -> None:
    revision = await world.deploy()
    flaky = Flaky(world)
    world.ready(revision, flaky)
    world.ready(revision, says("hello"))
    began_at = world.clock.now()

    for number in range(400):
        await world.start(world.call(number), revision).result()
        await asyncio.sleep(0.1)

    tried = [at - began_at for at in flaky.asked]
    assert tried == pytest.approx([0, 1, 3, 7, 15, 31], abs=0.5)


@scenario
async def test_after_its_rest_it_gets_one_request_at_a_time_until_one_is_answered(
    world: World,
) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=4)))
    flaky = Flaky(world, seconds=1)
    first = world.ready(revision, flaky)
    other = world.ready(revision, says("hello", seconds=1))
    running = [world.start(world.call(0), revision)]
    await asyncio.sleep(1.5)
    flaky.is_well = True

    running += [world.start(world.call(n), revision) for n in range(1, 9)]
    await world.settled()
    on_probation = (taken(world, first), taken(world, other))
    await asyncio.sleep(1.1)
    running += [world.start(world.call(n), revision) for n in range(9, 17)]
    await world.settled()
    trusted = (taken(world, first), taken(world, other))

    assert on_probation == (1, 4)
    assert trusted == (4, 4)
    for one in running:
        await one.result()


@scenario
async def test_the_only_replica_is_tried_every_second_however_often_it_failed(
    world: World,
) -> None:
    revision = await world.deploy()
    flaky = Flaky(world)
    world.ready(revision, flaky)
    for number in range(4):
        with suppress(PlatformError):
            await world.start(world.call(number), revision).result()
    assert len(flaky.asked) == 12
    flaky.is_well = True
    well_since = world.clock.now()

    await world.start(world.call(99), revision).result()

    assert world.clock.now() - well_since <= 1.01


@scenario
async def test_a_long_rest_ends_soon_after_nobody_else_is_left(world: World) -> None:
    revision = await world.deploy()
    flaky = Flaky(world)
    world.ready(revision, flaky)
    other = world.ready(revision, says("hello"))
    for number in range(200):
        await world.start(world.call(number), revision).result()
        await asyncio.sleep(0.1)  # it failed at 15 s, and would rest until 31
    flaky.is_well = True
    world.report(other, ReplicaState.LOST)
    lost_at = world.clock.now()

    client = await world.start(world.call(999), revision).result()

    assert client.body == b'{"text":"well"}'
    assert world.clock.now() - lost_at <= 1.01


@scenario
async def test_a_probe_whose_client_leaves_makes_room_for_the_next(world: World) -> None:
    revision = await world.deploy()
    flaky = Flaky(world, seconds=5)
    only = world.ready(revision, flaky)
    held = world.start(world.call(0), revision)
    await asyncio.sleep(0.5)
    flaky.is_well = True
    await asyncio.sleep(1)
    waiting = world.start(world.call(1), revision)
    await world.settled()
    assert taken(world, only) == 1

    held.leave()

    await waiting.result()
