"""A request beside a replica that is ready."""

import asyncio
import gc

import pytest

from control_plane.activator.exchange import Exchange
from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.contracts.model_spec import Limits
from tests.activator.world import World, says, scenario, spec, streams


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


def exchanges() -> list[object]:
    return [one for one in gc.get_objects() if type(one) is Exchange]


@pytest.mark.parametrize("is_streaming", [True, False])
def test_an_answered_request_is_freed_without_the_garbage_collector(is_streaming: bool) -> None:
    @scenario
    async def check(world: World) -> None:
        revision = await world.deploy()
        world.ready(revision, streams(2) if is_streaming else says("hello"))
        gc.collect()
        gc.disable()
        earlier = exchanges()  # that a failed test's traceback may hold
        try:
            await world.start(world.call(stream=is_streaming), revision).result()
            await world.settled()
            assert all(any(one is known for known in earlier) for one in exchanges())
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
