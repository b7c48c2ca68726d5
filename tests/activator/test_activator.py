"""A request and its replica, in every order in which things may happen to them."""

import asyncio
import gc
import re
from collections.abc import Sequence

import pytest

from control_plane.activator.call import Patience, ReplicaRefused
from control_plane.activator.exchange import Exchange
from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.contracts.base import ModelName
from infra.contracts.model_spec import Limits
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import ColdStartReport, Stage
from infra.contracts.tenancy import TenantName
from infra.errors import (
    ColdStartTimeout,
    ExecutionTimeout,
    ModelNotFound,
    QueueFull,
    QueueTimeout,
    ReplicaFailed,
    ReplicaLost,
    ShuttingDown,
)
from infra.virtual_time import VirtualTimeLoop
from tests.activator.world import World, says, scenario, spec, streams

# -- warm ------------------------------------------------------------------------------------------


@scenario
async def test_a_warm_request_is_relayed_and_nothing_is_woken(world: World) -> None:
    revision = await world.deploy()
    world.ready(revision, says("hello"))

    client = await world.start(world.call(), revision).result()

    assert client.status == 200
    assert client.body == b'{"text":"hello"}'
    assert client.headers == {
        b"content-type": b"application/json",
        b"content-length": b"16",
        b"server-timing": b"prefill;dur=10, decode;dur=20",
        b"firstlight-request-id": b"req_1",
        b"firstlight-revision": b"chat@1",
    }
    assert world.wakes == []
    assert await world.timelines.last(revision.model, 10) == ()


@scenario
async def test_a_stream_arrives_part_by_part_and_untouched(world: World) -> None:
    revision = await world.deploy()
    world.ready(revision, streams(3))

    client = await world.start(world.call(stream=True), revision).result()

    assert client.parts == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b""]
    assert client.headers[b"content-type"] == b"text/event-stream"


@pytest.mark.parametrize("is_streaming", [True, False])
def test_an_answered_request_is_freed_without_the_garbage_collector(is_streaming: bool) -> None:
    @scenario
    async def check(world: World) -> None:
        revision = await world.deploy()
        world.ready(revision, streams(2) if is_streaming else says("hello"))
        gc.collect()
        gc.disable()
        try:
            await world.start(world.call(stream=is_streaming), revision).result()
            await world.settled()
            assert not [one for one in gc.get_objects() if type(one) is Exchange]
        finally:
            gc.enable()

    check()


@scenario
async def test_an_error_of_the_replica_keeps_its_status_and_body(world: World) -> None:
    async def refuses(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(400, [(b"content-type", b"application/problem+json"), (b"x-inner", b"1")])
        await wire.write(b'{"type":"/problems/x"}')

    revision = await world.deploy()
    world.ready(revision, refuses)

    client = await world.start(world.call(stream=True), revision).result()

    assert (client.status, client.body) == (400, b'{"type":"/problems/x"}')
    assert b"x-inner" not in client.headers


@scenario
async def test_a_large_answer_is_passed_on_before_it_is_whole(world: World) -> None:
    async def large(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200, [(b"content-length", b"3000000")])
        for _ in range(30):
            await wire.write(b"x" * 100_000)
            await asyncio.sleep(1)

    revision = await world.deploy()
    world.ready(revision, large)
    running = world.start(world.call(), revision)
    await asyncio.sleep(15)

    assert running.client.has_started and not running.client.is_finished
    client = await running.result()

    assert len(client.body) == 3_000_000
    assert client.headers[b"content-length"] == b"3000000"


@scenario
async def test_requests_go_to_the_replica_with_the_most_room(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=4)))
    for _ in range(2):
        world.ready(revision, says("x", seconds=5))
    running = [world.start(world.call(n), revision) for n in range(8)]
    await world.settled()

    shares = [world.lines.in_flight(replica) for replica in world.fleet.replicas()]

    assert shares == [4, 4]
    for one in running:
        await one.result()


# -- held ------------------------------------------------------------------------------------------


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


# -- admission -------------------------------------------------------------------------------------


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


# -- deadlines -------------------------------------------------------------------------------------


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


# -- failures --------------------------------------------------------------------------------------


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


# -- deployments -----------------------------------------------------------------------------------


@scenario
async def test_the_held_finish_on_the_revision_they_were_admitted_to(world: World) -> None:
    old = await world.deploy()
    running = [world.start(world.call(n), old) for n in range(3)]
    await world.settled()

    new = await world.deploy(spec(execution=7))
    world.ready(new)
    later = await world.start(world.call(3), new).result()
    assert not any(one.client.has_started for one in running), "no replica is of their revision"
    world.ready(old)

    clients = [await one.result() for one in running]
    assert {client.headers[b"firstlight-revision"] for client in clients} == {b"chat@1"}
    assert later.headers[b"firstlight-revision"] == b"chat@2"
    assert world.wakes == ["chat@1"]
    world.check(old, new)


@scenario
async def test_who_lost_its_replica_tries_again_on_its_own_revision(world: World) -> None:
    old = await world.deploy()
    first = world.ready(old, says("never", seconds=1e6))
    running = world.start(world.call(), old)
    await world.settled()
    new = await world.deploy(spec(execution=7))
    world.ready(new)

    world.replicas.kill(first)
    world.report(first, ReplicaState.FAILED)
    await world.settled()
    assert world.wakes == ["chat@1"]
    world.ready(old)

    client = await running.result()
    assert client.headers[b"firstlight-revision"] == b"chat@1"
    world.check(old, new)


@scenario
async def test_the_running_finish_on_the_old_revision(world: World) -> None:
    old = await world.deploy()
    world.ready(old, says("old", seconds=2))
    running = world.start(world.call(), old)
    await world.settled()

    await world.deploy(spec(execution=7))

    client = await running.result()
    assert client.headers[b"firstlight-revision"] == b"chat@1"
    world.check(old)


@scenario
async def test_the_held_of_a_deleted_model_are_told(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(), revision)
    await world.settled()

    await world.deployments.delete(revision.model, now=world.clock.now())

    assert isinstance(await running.refused(), ModelNotFound)
    world.check(revision)


@scenario
async def test_a_deletion_tells_who_waits_for_any_revision(world: World) -> None:
    revisions = [await world.deploy(spec(execution=7 + n)) for n in range(3)]
    running = [world.start(world.call(n), one) for n, one in enumerate(revisions)]
    await world.settled()

    await world.deployments.delete(revisions[0].model, now=world.clock.now())

    for one in running:
        assert isinstance(await one.refused(), ModelNotFound)
    world.check(*revisions)


@scenario
async def test_a_deleted_models_request_is_not_tried_again_on_its_namesake(world: World) -> None:
    old = await world.deploy()
    first = world.ready(old, says("never", seconds=1e6))
    running = world.start(world.call(), old)
    await world.settled()
    await world.deployments.delete(old.model, now=world.clock.now())
    new = await world.deploy()
    world.ready(new)

    world.replicas.kill(first)

    assert isinstance(await running.refused(), ModelNotFound)
    assert new.name == "chat@2"
    world.check(old, new)


# -- the account of a cold start -------------------------------------------------------------------


@scenario
async def test_the_report_of_every_held_request_adds_up(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=2)))
    running = [world.start(world.call(n), revision) for n in range(10)]
    await asyncio.sleep(0.25)
    await world.climb(revision, says("hello", seconds=0.05), seconds=3)
    clients = [await one.result() for one in running]

    reports = await world.timelines.last(revision.model, 100)

    assert len(reports) == 10
    for report in reports:
        explained = sum(share.seconds for share in report.shares)
        assert explained + report.unattributed_s == pytest.approx(report.ttft_s, abs=1e-9)
        assert report.unattributed_s == pytest.approx(0, abs=1e-6)
        stages = report.stage_seconds()
        assert stages[Stage.WEIGHTS] == pytest.approx(1)
        assert stages[Stage.PREFILL] == pytest.approx(0.03, abs=1e-6), "decode is no part of it"
        assert report.ttft_s == pytest.approx(
            3.25 + stages[Stage.PREFILL] + stages[Stage.QUEUE] - 0.25
        )
    for client in clients:
        assert client.headers[b"firstlight-cold-start"] == b"true"
        parts = dict(re.findall(rb"([a-z]+);dur=([0-9.]+)", client.headers[b"server-timing"]))
        assert set(parts) == {
            *(b"queue", b"provision", b"runtime", b"weights", b"engine", b"prefill"),
            *(b"unattributed", b"total"),
        } - ({b"provision"} - set(parts))
        total = float(parts.pop(b"total"))
        assert sum(map(float, parts.values())) == pytest.approx(total, abs=0.01)


@scenario
async def test_a_report_is_stored_before_the_answer_ends(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(stream=True), revision)
    await world.climb(revision, streams(2))

    await running.result()

    report = await world.timelines.find(revision.model, running.request_id)
    assert report is not None
    assert report.stage_seconds()[Stage.PREFILL] == pytest.approx(0.1)


@scenario
async def test_the_reports_of_a_burst_share_writes_and_no_answer_ends_before_its_own(
    world: World,
) -> None:
    append, sizes = world.timelines.append, []

    async def slowly(model: ModelName, reports: Sequence[ColdStartReport]) -> None:
        await asyncio.sleep(0.1)
        sizes.append(len(reports))
        await append(model, reports)

    world.timelines.append = slowly  # type: ignore[method-assign]
    revision = await world.deploy(spec(limits=Limits(max_concurrency=8)))
    running = [world.start(world.call(n), revision) for n in range(48)]
    await world.climb(revision, says("hello", seconds=0.01))

    for one in running:
        await one.result()
        assert await world.timelines.find(revision.model, one.request_id) is not None

    assert (sum(sizes), len(sizes)) == (48, 2)


@scenario
async def test_a_failed_try_is_part_of_the_account(world: World) -> None:
    revision = await world.deploy()
    doomed = world.ready(revision, says("x", seconds=5))
    running = world.start(world.call(), revision)
    await asyncio.sleep(2)
    world.replicas.kill(doomed)
    world.report(doomed, ReplicaState.FAILED)
    await world.climb(revision, says("hello"), seconds=3)

    await running.result()

    report = await world.timelines.find(revision.model, running.request_id)
    assert report is not None
    assert report.ttft_s == pytest.approx(5)
    assert report.stage_seconds()[Stage.PREFILL] == pytest.approx(2)
    assert report.unattributed_s == pytest.approx(0, abs=1e-6)


# -- progress --------------------------------------------------------------------------------------


@scenario
async def test_a_held_stream_that_asks_is_told_of_every_stage(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(stream=True, progress=True), revision)
    await world.settled()
    assert running.client.has_started, "at once"

    await world.climb(revision, streams(1), seconds=6)
    client = await running.result()

    lines = client.body.decode().split("\n\n")
    assert lines[:7] == [
        ": stage queue 0%",
        ": stage runtime 0%",
        ": stage runtime 50%",
        ": stage weights 0%",
        ": stage weights 50%",
        ": stage engine 0%",
        ": stage engine 50%",
    ]
    assert lines[7].startswith(": server-timing runtime;dur=2000.000, ")
    assert lines[8:] == ["data: 0", ""]
    assert client.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert client.headers[b"firstlight-cold-start"] == b"true"


@scenario
async def test_a_held_stream_is_spoken_to_after_ten_seconds_and_then_in_time(
    world: World,
) -> None:
    revision = await world.deploy()
    running = world.start(world.call(stream=True), revision)
    await asyncio.sleep(9.9)
    assert not running.client.has_started

    await asyncio.sleep(0.2)
    assert running.client.body == b": stage queue 0%\n\n"
    await asyncio.sleep(20)
    assert running.client.body == b": stage queue 0%\n\n" * 3

    world.ready(revision, streams(1))
    await running.result()


@scenario
async def test_an_answer_that_is_no_stream_never_begins_early(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(progress=True), revision)
    await asyncio.sleep(60)

    assert not running.client.has_started
    world.ready(revision)
    await running.result()


@scenario
async def test_a_problem_of_the_replica_after_an_early_head_is_handed_up(world: World) -> None:
    async def refuses(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(400)
        await wire.write(
            b'{"type":"/problems/context-length-exceeded","title":"t","status":400,"detail":"long",'
            b'"error":{"message":"long","type":"invalid_request_error","code":"c"}}'
        )

    revision = await world.deploy()
    running = world.start(world.call(stream=True, progress=True), revision)
    await world.settled()
    world.ready(revision, refuses)

    error = await running.error()

    assert isinstance(error, ReplicaRefused)
    assert error.problem.detail == "long"


@scenario
async def test_a_deadline_after_an_early_head_is_still_typed(world: World) -> None:
    revision = await world.deploy(spec(cold_start=20))
    running = world.start(world.call(stream=True, progress=True), revision)

    error = await running.refused()

    assert isinstance(error, ColdStartTimeout)
    assert running.client.has_started and not running.client.is_finished
