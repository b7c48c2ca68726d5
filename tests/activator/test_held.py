"""Requests that wait for a replica, and which of them may."""

import asyncio

from infra.contracts.model_spec import Limits
from infra.contracts.revision import ReplicaState
from infra.errors import (
    QueueFull,
)
from tests.activator.world import World, says, scenario, spec


@scenario
async def test_five_hundred_requests_at_zero_cause_one_wake_and_are_served_in_order(
    world: World,
) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=8)))
    running = [world.start(world.call(n), revision) for n in range(500)]
    await world.settled()

    assert world.lines.demand(revision.name).waiting == 500
    replica_id = await world.climb(revision, says("hello", seconds=0.05))
    most = 0
    while not all(one.ended.done() for one in running):
        most = max(most, sum(map(world.lines.in_flight, world.fleet.replicas())))
        await asyncio.sleep(0.01)

    clients = [await one.result() for one in running]
    assert world.wakes == ["chat@1"]
    assert {client.status for client in clients} == {200}
    assert [sent.request.request_id for sent in world.replicas.sent] == [
        f"req_{n}" for n in range(500)
    ]
    assert {sent.replica_id for sent in world.replicas.sent} == {replica_id}
    assert most == 8


@scenario
async def test_a_ready_replica_wakes_the_waiters_without_any_time_passing(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(), revision)
    await asyncio.sleep(3)
    before = asyncio.get_running_loop().time()

    world.ready(revision, says("hello"))
    await world.settled()

    assert running.ended.done()
    assert asyncio.get_running_loop().time() == before


@scenario
async def test_a_request_cancelled_while_held_never_reaches_a_replica(world: World) -> None:
    revision = await world.deploy()
    running = [world.start(world.call(n), revision) for n in range(3)]
    await world.settled()

    running[1].leave()

    assert world.lines.demand(revision.name).waiting == 2
    world.ready(revision)
    await running[0].result()
    await running[2].result()
    assert [sent.request.request_id for sent in world.replicas.sent] == ["req_0", "req_2"]


@scenario
async def test_the_demand_of_the_only_request_vanishes_with_it(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(), revision)
    await world.settled()
    assert world.lines.demand(revision.name).waiting == 1

    running.leave()

    demand = world.lines.demand(revision.name)
    assert (demand.in_flight, demand.waiting) == (0, 0)


@scenario
async def test_a_client_that_leaves_as_its_permit_comes_gives_it_back(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=1)))
    first, second = (world.start(world.call(n), revision) for n in range(2))
    await world.settled()

    world.ready(revision)
    first.leave()  # the permit is granted, it has not heard of it yet
    await second.result()

    assert [sent.request.request_id for sent in world.replicas.sent] == ["req_1"]


@scenario
async def test_nobody_is_granted_a_permit_after_its_client_left(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=1)))
    first, second = (world.start(world.call(n), revision) for n in range(2))
    await world.settled()

    first.leave()
    world.ready(revision)
    await second.result()

    assert [sent.request.request_id for sent in world.replicas.sent] == ["req_1"]


@scenario
async def test_a_new_request_wakes_again_after_the_line_was_empty(world: World) -> None:
    revision = await world.deploy()
    for number in range(2):
        running = world.start(world.call(number), revision)
        await world.settled()
        running.leave()

    assert world.wakes == ["chat@1", "chat@1"]


@scenario
async def test_the_last_replica_lost_wakes_for_those_who_wait(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=1)))
    replica_id = world.ready(revision, says("x", seconds=9))
    running = [world.start(world.call(n), revision) for n in range(3)]
    await world.settled()
    assert world.wakes == []

    world.replicas.kill(replica_id)
    world.report(replica_id, ReplicaState.FAILED)
    await world.settled()

    assert world.wakes == ["chat@1"]
    world.ready(revision)
    for one in running:
        await one.result()


@scenario
async def test_a_full_queue_refuses_by_count(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_queue=2)))
    held = [world.start(world.call(n), revision) for n in range(2)]
    await world.settled()

    error = await world.start(world.call(3), revision).refused()

    assert isinstance(error, QueueFull)
    assert error.facts["limit"] == 2
    assert int(error.headers()["Retry-After"]) >= 1
    for one in held:
        one.leave()


@scenario
async def test_a_full_queue_refuses_by_bytes(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_queue_bytes=1024)))
    held = world.start(world.call(1, body=b"x" * 1000), revision)
    await world.settled()

    error = await world.start(world.call(2, body=b"x" * 25), revision).refused()
    fits = world.start(world.call(3, body=b"x" * 24), revision)
    await world.settled()

    assert isinstance(error, QueueFull)
    assert error.facts["limit_bytes"] == 1024
    assert world.lines.demand(revision.name).waiting == 2
    held.leave()
    fits.leave()


@scenario
async def test_a_queue_of_none_still_serves_while_permits_are_free(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_queue=0, max_concurrency=1)))
    world.ready(revision, says("x", seconds=1))
    running = world.start(world.call(1), revision)
    await world.settled()

    error = await world.start(world.call(2), revision).refused()

    assert isinstance(error, QueueFull)
    await running.result()
