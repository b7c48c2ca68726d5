"""Replicas that fail a request at every moment, and a platform that stops."""

import asyncio

import pytest

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.contracts.model_spec import Limits
from infra.contracts.revision import ReplicaState
from infra.errors import (
    ReplicaFailed,
    ReplicaLost,
    ShuttingDown,
)
from tests.activator.world import World, says, scenario, spec, streams


async def dies(request: ReplicaRequest, wire: Wire) -> None:
    wire.break_off()


@scenario
async def test_a_replica_that_dies_before_the_first_byte_is_replaced_unseen(world: World) -> None:
    revision = await world.deploy()
    world.ready(revision, dies)
    world.ready(revision, says("hello"))

    clients = [await world.start(world.call(n), revision).result() for n in range(2)]

    assert [client.status for client in clients] == [200, 200]
    assert [sent.replica_id for sent in world.replicas.sent] == [
        "replica-1",
        "replica-2",
        "replica-2",
    ], "the second request keeps away from the suspect"
    assert world.meters.retries.value("chat") == 1


@scenario
async def test_the_next_replica_serves_whom_the_only_one_failed(world: World) -> None:
    revision = await world.deploy()
    replica_id = world.ready(revision, says("x", seconds=5))
    running = world.start(world.call(), revision)
    await asyncio.sleep(1)

    world.replicas.kill(replica_id)
    await world.settled()
    assert world.wakes == ["chat@1"]
    world.report(replica_id, ReplicaState.FAILED)
    await world.climb(revision, says("hello"))

    client = await running.result()
    assert client.body == b'{"text":"hello"}'
    assert client.headers[b"firstlight-cold-start"] == b"true"


@scenario
async def test_a_retried_request_keeps_its_place_before_later_ones(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=2)))
    doomed = world.ready(revision, says("x", seconds=5))
    running = [world.start(world.call(n), revision) for n in range(5)]
    await asyncio.sleep(1)

    world.replicas.kill(doomed)
    world.report(doomed, ReplicaState.FAILED)
    await world.settled()
    world.replicas.sent.clear()
    world.ready(revision, says("x", seconds=1))
    for one in running:
        await one.result()

    assert [sent.request.request_id for sent in world.replicas.sent] == [
        f"req_{n}" for n in range(5)
    ]


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_defect_of_ours_ends_the_request_and_keeps_nothing(is_ready: bool) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("a defect")

    @scenario
    async def check(world: World) -> None:
        revision = await world.deploy()
        world.replicas.send = breaks  # type: ignore[method-assign,assignment]
        if is_ready:
            world.ready(revision)
            with pytest.raises(RuntimeError):
                world.start(world.call(), revision)
            return
        running = world.start(world.call(), revision)
        world.ready(revision)
        assert isinstance(await running.error(), RuntimeError)

    check()


@scenario
async def test_three_tries_are_enough(world: World) -> None:
    revision = await world.deploy()
    for _ in range(4):
        world.ready(revision, dies)

    error = await world.start(world.call(), revision).refused()

    assert isinstance(error, ReplicaLost)
    assert len(world.replicas.sent) == 3


@scenario
async def test_who_cannot_reach_a_dead_machine_waits_for_its_end_to_be_known(world: World) -> None:
    revision = await world.deploy()
    dead = world.ready(revision, says("x", seconds=60))
    running = world.start(world.call(), revision)
    await asyncio.sleep(30)

    world.replicas.kill(dead)
    await asyncio.sleep(11)  # one lease
    world.report(dead, ReplicaState.FAILED)
    await world.climb(revision, says("hello"))

    assert (await running.result()).body == b'{"text":"hello"}'


@scenario
async def test_a_replica_that_its_node_has_and_nobody_reaches_is_no_reason_to_wait(
    world: World,
) -> None:
    revision = await world.deploy()
    world.replicas.scripts.pop(world.ready(revision))
    began_at = world.clock.now()

    error = await world.start(world.call(), revision).refused()

    assert isinstance(error, ReplicaLost)
    assert 15 <= world.clock.now() - began_at <= 17
    assert "connection refused" in error.detail


@scenario
async def test_a_draining_replica_that_refuses_is_tried_elsewhere(world: World) -> None:
    async def draining(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(503)

    revision = await world.deploy()
    world.ready(revision, draining)
    world.ready(revision, says("hello"))

    client = await world.start(world.call(), revision).result()

    assert client.status == 200


@scenario
async def test_a_suspect_is_trusted_again_after_a_while(world: World) -> None:
    replies = iter([dies, says("hello")])

    async def recovers(request: ReplicaRequest, wire: Wire) -> None:
        await next(replies)(request, wire)

    revision = await world.deploy()
    world.ready(revision, recovers)

    client = await world.start(world.call(), revision).result()

    assert client.status == 200
    assert len(world.replicas.sent) == 2


@scenario
async def test_an_answer_that_breaks_off_before_it_was_passed_on_is_tried_again(
    world: World,
) -> None:
    async def half(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200)
        await wire.write(b'{"te')
        await asyncio.sleep(1)
        wire.break_off()

    revision = await world.deploy()
    world.ready(revision, half)
    world.ready(revision, says("hello"))

    client = await world.start(world.call(), revision).result()

    assert client.body == b'{"text":"hello"}'


@scenario
async def test_a_stream_that_breaks_off_is_an_error_and_not_a_retry(world: World) -> None:
    async def half(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200)
        await wire.write(b"data: 1\n\n")
        await asyncio.sleep(1)
        wire.break_off()

    revision = await world.deploy()
    world.ready(revision, half)
    running = world.start(world.call(stream=True), revision)

    error = await running.refused()

    assert isinstance(error, ReplicaLost)
    assert running.client.body == b"data: 1\n\n"
    assert not running.client.is_finished
    assert len(world.replicas.sent) == 1


@scenario
async def test_half_an_event_of_a_dying_replica_is_not_passed_on(world: World) -> None:
    async def half(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200)
        for part in (b"data: 1\n\nda", b"ta: 2\n\n", b"data: 3\n\nevent: x\r\n\r\ndata: {"):
            await wire.write(part)
            await asyncio.sleep(1)
        wire.break_off()

    revision = await world.deploy()
    world.ready(revision, half)
    running = world.start(world.call(stream=True), revision)

    await running.refused()

    assert running.client.parts == [
        b"data: 1\n\n",
        b"data: 2\n\n",
        b"data: 3\n\nevent: x\r\n\r\n",
    ]


@scenario
async def test_a_client_that_leaves_in_mid_stream_is_noticed_upstream_at_once(
    world: World,
) -> None:
    revision = await world.deploy()
    world.ready(revision, streams(100))
    running = world.start(world.call(stream=True), revision)
    await asyncio.sleep(1)

    running.leave()

    assert world.replicas.aborted == ["req_1"]
    assert world.lines.demand(revision.name).in_flight == 0


@scenario
async def test_a_replica_is_held_back_by_a_client_that_does_not_read(world: World) -> None:
    written = 0

    async def floods(request: ReplicaRequest, wire: Wire) -> None:
        nonlocal written
        wire.head(200)
        while True:
            await wire.write(b"x" * 998 + b"\n\n")
            written += 1000

    revision = await world.deploy()
    world.ready(revision, floods)
    running = world.start(world.call(stream=True), revision)
    running.exchange.pause()
    await asyncio.sleep(5)

    assert written < 200_000
    running.leave()


@scenario
async def test_replicas_that_cannot_start_fail_the_held_with_the_cause(world: World) -> None:
    revision = await world.deploy()
    running = [world.start(world.call(n), revision) for n in range(3)]
    await world.settled()

    world.lines.fail(revision.name, ReplicaFailed("weights are torn", cause="source-invalid"))

    errors = [await one.refused() for one in running]
    assert [error.facts["cause"] for error in errors] == ["source-invalid"] * 3
    assert len(set(map(id, errors))) == 3


@scenario
async def test_a_failure_beside_a_ready_replica_fails_nobody(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=1)))
    world.ready(revision, says("x", seconds=1))
    running = [world.start(world.call(n), revision) for n in range(2)]
    await world.settled()

    world.lines.fail(revision.name, ReplicaFailed("the second cannot start"))

    for one in running:
        await one.result()


@scenario
async def test_draining_sends_the_held_away_and_lets_the_running_finish(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=1)))
    world.ready(revision, says("x", seconds=1))
    running, held = (world.start(world.call(n), revision) for n in range(2))
    await world.settled()

    await world.activator.drain(within_s=10)

    assert running.client.is_finished
    assert isinstance(await held.refused(), ShuttingDown)
    assert isinstance(await world.start(world.call(3), revision).refused(), ShuttingDown)
    await running.result()


@scenario
async def test_who_still_runs_when_the_drain_is_over_is_told(world: World) -> None:
    revision = await world.deploy()
    world.ready(revision, streams(1000))
    running = world.start(world.call(stream=True), revision)
    await world.settled()
    began_at = world.clock.now()

    await world.activator.drain(within_s=3)

    assert world.clock.now() - began_at == pytest.approx(3)
    assert isinstance(await running.refused(), ShuttingDown)
    assert running.client.has_started


@scenario
async def test_draining_nothing_takes_no_time(world: World) -> None:
    began_at = world.clock.now()

    await world.activator.drain(within_s=3)

    assert world.clock.now() == began_at
