"""How long a request waits, for what, and what it is told then."""

import asyncio

import pytest

from control_plane.activator.call import Patience
from infra.contracts.model_spec import Limits
from infra.contracts.tenancy import TenantName
from infra.errors import (
    ColdStartTimeout,
    ExecutionTimeout,
    QueueTimeout,
)
from infra.virtual_time import VirtualTimeLoop
from tests.activator.world import World, says, scenario, spec


@scenario
async def test_no_replica_in_time_is_a_cold_start_timeout(world: World) -> None:
    revision = await world.deploy(spec(cold_start=30, queue=5))
    running = world.start(world.call(), revision)
    begun_at = world.clock.now()

    error = await running.refused()

    assert isinstance(error, ColdStartTimeout)
    assert world.clock.now() - begun_at == pytest.approx(30)


@scenario
async def test_busy_replicas_for_too_long_are_a_queue_timeout(world: World) -> None:
    revision = await world.deploy(spec(queue=5, limits=Limits(max_concurrency=1)))
    world.ready(revision, says("x", seconds=60))
    first = world.start(world.call(1), revision)
    await world.settled()
    begun_at = world.clock.now()

    error = await world.start(world.call(2), revision).refused()

    assert isinstance(error, QueueTimeout)
    assert world.clock.now() - begun_at == pytest.approx(5)
    await first.result()


@scenario
async def test_the_cold_wait_does_not_use_up_the_patience_for_the_queue(world: World) -> None:
    revision = await world.deploy(spec(cold_start=30, queue=5, limits=Limits(max_concurrency=1)))
    running = [world.start(world.call(n), revision) for n in range(2)]
    await asyncio.sleep(25)
    world.ready(revision, says("x", seconds=4))

    for one in running:
        await one.result()


@scenario
async def test_a_late_comer_keeps_its_own_deadline(world: World) -> None:
    revision = await world.deploy(spec(cold_start=10))
    begun_at = world.clock.now()
    first = world.start(world.call(1), revision)
    await asyncio.sleep(4)
    second = world.start(world.call(2), revision)

    await first.refused()
    first_waited = world.clock.now() - begun_at
    await second.refused()

    assert first_waited == pytest.approx(10)
    assert world.clock.now() - begun_at == pytest.approx(14)


@scenario
async def test_an_answer_that_takes_too_long_is_an_execution_timeout(world: World) -> None:
    revision = await world.deploy(spec(execution=3))
    world.ready(revision, says("x", seconds=60))
    begun_at = world.clock.now()

    error = await world.start(world.call(), revision).refused()

    assert isinstance(error, ExecutionTimeout)
    assert world.clock.now() - begun_at == pytest.approx(3)
    assert world.replicas.aborted == ["req_1"]


@scenario
async def test_a_timeout_of_zero_refuses_at_once(world: World) -> None:
    revision = await world.deploy(spec(cold_start=0))

    error = await world.start(world.call(), revision).refused()

    assert isinstance(error, ColdStartTimeout)


@scenario
async def test_a_client_waits_for_a_cold_start_no_longer_than_it_says(world: World) -> None:
    revision = await world.deploy(spec(cold_start=30))
    patient = world.start(world.call(1), revision)
    hasty = world.start(world.call(2, patience=Patience(cold_start_s=3)), revision)
    greedy = world.start(world.call(3, patience=Patience(cold_start_s=300)), revision)

    began_at = world.clock.now()
    error = await hasty.refused()

    assert isinstance(error, ColdStartTimeout)
    assert world.clock.now() - began_at == pytest.approx(3)
    assert error.problem().model_dump()["limit_s"] == 3
    assert isinstance(await greedy.refused(), ColdStartTimeout)
    assert isinstance(await patient.refused(), ColdStartTimeout)
    assert world.clock.now() - began_at == pytest.approx(30)


@scenario
async def test_a_client_is_held_no_longer_than_it_says_cold_and_busy_together(
    world: World,
) -> None:
    revision = await world.deploy(
        spec(cold_start=60, queue=60, limits=Limits(max_concurrency=1, max_queue=9))
    )
    first = world.start(world.call(1), revision)
    held = world.start(world.call(2, patience=Patience(held_s=10)), revision)
    patient = world.start(world.call(3), revision)
    began_at = world.clock.now()
    await asyncio.sleep(7)
    world.ready(revision, says("x", seconds=20))
    await world.settled()
    # Its deadline puts it before the first, which has none: that one is in flight, so it is not.
    assert [one.request.request_id for one in world.replicas.sent] == ["req_2"]
    await held.result()

    late = world.start(world.call(4, patience=Patience(held_s=4)), revision)
    error = await late.refused()

    assert isinstance(error, QueueTimeout)
    assert error.problem().model_dump()["limit_s"] == 4
    assert world.clock.now() - began_at == pytest.approx(27 + 4)
    await first.result()
    await patient.result()


@scenario
async def test_a_wait_that_ends_while_no_replica_is_ready_is_a_cold_start_timeout(
    world: World,
) -> None:
    revision = await world.deploy(spec(cold_start=30))
    began_at = world.clock.now()
    patience = Patience(held_s=3, cold_start_s=20)

    error = await world.start(world.call(patience=patience), revision).refused()

    assert isinstance(error, ColdStartTimeout)
    assert "Firstlight-Wait-Timeout" in (error.hint or "")
    assert world.clock.now() - began_at == pytest.approx(3)


@scenario
async def test_what_waited_cold_counts_when_it_waits_for_a_permit(world: World) -> None:
    revision = await world.deploy(spec(queue=60, limits=Limits(max_concurrency=1)))
    urgent = world.start(world.call(1, priority=-1), revision)
    held = world.start(world.call(2, patience=Patience(held_s=10)), revision)
    began_at = world.clock.now()
    await asyncio.sleep(7)
    world.ready(revision, says("x", seconds=20))

    error = await held.refused()

    assert isinstance(error, QueueTimeout)
    assert world.clock.now() - began_at == pytest.approx(10)
    await urgent.result()


@scenario
async def test_who_is_past_its_time_is_not_sent_to_a_replica_though_the_timer_is_late(
    world: World,
) -> None:
    revision = await world.deploy(spec(cold_start=60))
    held = world.start(world.call(patience=Patience(held_s=3)), revision)
    await world.settled()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.leap(5)  # we were stalled, and the replica is what we hear of first
    world.ready(revision, says("x"))

    error = await held.refused()

    assert isinstance(error, ColdStartTimeout)
    assert world.replicas.sent == []


@scenario
async def test_held_requests_of_tenants_go_by_weight(world: World) -> None:
    world.weights[TenantName("heavy")] = 3
    revision = await world.deploy(spec(limits=Limits(max_concurrency=1)))
    heavy = [world.start(world.call(n, tenant=TenantName("heavy")), revision) for n in range(12)]
    light = [
        world.start(world.call(100 + n, tenant=TenantName("light")), revision) for n in range(4)
    ]

    world.ready(revision, says("x", seconds=1))
    for one in (*heavy, *light):
        await one.result()

    order = [int(one.request.request_id.removeprefix("req_")) for one in world.replicas.sent]
    for turns in range(4, 17, 4):
        assert sum(number >= 100 for number in order[:turns]) in (turns // 4, turns // 4 + 1)


@scenario
async def test_a_client_gives_an_execution_no_longer_than_it_says_its_wait_apart(
    world: World,
) -> None:
    revision = await world.deploy(spec(execution=60))
    running = world.start(world.call(patience=Patience(execution_s=2)), revision)
    began_at = world.clock.now()
    await world.climb(revision, says("late", seconds=100), seconds=10)

    error = await running.refused()

    assert isinstance(error, ExecutionTimeout)
    assert world.clock.now() - began_at == pytest.approx(12)
    assert world.replicas.sent[0].request.timeout_s == 2


@scenario
async def test_a_tenant_does_not_wait_behind_anothers_crowd(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=1)))
    crowd = [world.start(world.call(n, tenant=TenantName("many")), revision) for n in range(20)]
    await world.settled()
    urgent = world.start(world.call(98, tenant=TenantName("many"), priority=-1), revision)
    few = world.start(world.call(99, tenant=TenantName("few")), revision)
    await world.settled()
    world.ready(revision, says("x", seconds=1))

    for one in (*crowd, urgent, few):
        await one.result()

    order = [sent.request.request_id for sent in world.replicas.sent]
    assert order == ["req_98", "req_99", *(f"req_{n}" for n in range(20))]
