"""Hot requests below ASGI: turns with ordinary ones, framing, bounds, back-pressure, departures."""

import asyncio

import orjson
import pytest

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.api.hot_request import SMALL_BYTES
from infra import bounded_http
from tests.activator.world import says, streams
from tests.api.connection import KEEP_ALIVE_S, Client
from tests.api.world import CHAT, EdgeWorld, scenario

BODY = orjson.dumps(CHAT)


def chat(body: bytes = BODY, version: str = "1.1", *headers: str) -> bytes:
    lines = [f"POST /v1/chat/completions HTTP/{version}", "host: test", *headers]
    if not any(line.startswith("transfer-encoding") for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


HEALTH = b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n"


async def answered(client: Client, count: int = 1) -> None:
    while client.answers < count:
        assert client.is_open
        await asyncio.sleep(0.01)


@scenario
async def test_hot_and_ordinary_requests_take_turns_on_one_connection(edge: EdgeWorld) -> None:
    client = edge.server.connect()

    for number in range(1, 7):
        await client.send(chat() if number % 2 else HEALTH)
        await answered(client, number)

    assert client.status == 200
    assert client.content.count(b'{"text":"hello"}') == 3
    client.hang_up()


@scenario
async def test_what_is_sent_ahead_of_a_held_request_is_answered_after_it_and_in_order(
    edge: EdgeWorld,
) -> None:
    client = edge.server.connect()

    await client.send(chat() + HEALTH + chat(b"{") + HEALTH)
    await client.send(chat(b"[]") + HEALTH)
    await edge.settled()
    assert client.answers == 0, "the first one is held"
    await answered(client, 6)

    assert client.statuses == [200, 200, 400, 200, 400, 200]
    client.hang_up()


@scenario
async def test_thousands_of_requests_sent_ahead_do_not_nest(edge: EdgeWorld) -> None:
    client = edge.server.connect()

    await client.send(chat() + chat(b"{") * 1500)
    await answered(client, 1501)

    assert client.statuses == [200] + [400] * 1500
    client.hang_up()


@scenario
async def test_a_client_that_leaves_takes_what_it_sent_ahead_along(edge: EdgeWorld) -> None:
    client = edge.server.connect()
    await client.send(chat() * 3)
    await edge.settled()
    demand = edge.lines.demand_of(edge.world.deployments.all()[0].model)
    assert demand.waiting == 1, "one at a time"

    client.hang_up()
    await asyncio.sleep(30)

    assert edge.replicas.sent == []
    assert client.answers == 0


@scenario
async def test_a_body_in_chunks_is_a_body(edge: EdgeWorld) -> None:
    exchange = edge.start("POST", "/v1/chat/completions", [BODY[:9], BODY[9:10], BODY[10:]])
    await exchange.done()

    assert exchange.json() == {"text": "hello"}
    [sent] = edge.replicas.sent
    assert sent.request.body == BODY


@scenario
async def test_an_old_client_gets_a_stream_that_ends_with_the_connection(edge: EdgeWorld) -> None:
    edge.script = streams(2)
    client = edge.server.connect()

    await client.send(chat(orjson.dumps(CHAT | {"stream": True}), "1.0"))
    await client.ended.wait()

    assert client.content == b"data: 0\n\ndata: 1\n\n"
    assert "transfer-encoding" not in client.headers
    assert client.headers["connection"] == "close"
    assert not client.is_open


@scenario
async def test_who_asks_first_is_told_to_go_on(edge: EdgeWorld) -> None:
    client = edge.server.connect()
    head = chat(BODY, "1.1", "expect: 100-continue")[: -len(BODY)]

    await client.send(head)
    assert client.interim == [100]
    await client.send(BODY)
    await answered(client)

    assert client.status == 200
    client.hang_up()


@scenario
async def test_a_length_and_chunks_together_are_refused_and_nothing_behind_them_is_read(
    edge: EdgeWorld,
) -> None:
    client = edge.server.connect()

    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + chat()
    )
    await client.ended.wait()

    assert client.statuses == [400]
    assert not client.is_open
    assert edge.is_asleep()


@scenario
async def test_a_head_without_a_body_is_answered_without_one(edge: EdgeWorld) -> None:
    exchange = await edge.call("HEAD", "/v1/chat/completions")

    assert (exchange.status, exchange.content) == (405, b"")


@pytest.mark.parametrize("drip", [b"x", b""], ids=["drop by drop", "nothing more"])
def test_a_body_that_does_not_arrive_is_cut_off_after_a_minute(drip: bytes) -> None:
    @scenario
    async def check(edge: EdgeWorld) -> None:
        client = edge.server.connect()
        head = chat(BODY, "1.1", "x: y").replace(b"content-length: ", b"content-length: 1")
        began_at = edge.world.clock.now()

        await client.send(head)
        while client.is_open:
            await asyncio.sleep(1)
            if drip:
                await client.send(drip)

        assert edge.world.clock.now() - began_at == pytest.approx(bounded_http.REQUEST_S, abs=2)
        assert edge.is_asleep()

    check()


@scenario
async def test_a_slow_request_may_follow_a_quick_one(edge: EdgeWorld) -> None:
    """One timer watches the connection: that of the first request must not end the second."""
    client = edge.server.connect()
    await client.send(chat())
    await answered(client)
    await asyncio.sleep(4)
    for byte in chat():
        await client.send(bytes([byte]))
        await asyncio.sleep(0.25)

    await answered(client, 2)

    assert client.statuses == [200, 200]
    client.hang_up()


@pytest.mark.parametrize("first", [chat(), chat(b"{"), HEALTH], ids=["hot", "refused", "ordinary"])
def test_a_connection_that_is_not_used_again_is_closed(first: bytes) -> None:
    @scenario
    async def check(edge: EdgeWorld) -> None:
        client = edge.server.connect()
        await client.send(first)
        await answered(client)
        began_at = edge.world.clock.now()

        await client.ended_connection.wait()

        assert edge.world.clock.now() - began_at == pytest.approx(KEEP_ALIVE_S, abs=0.1)

    check()


@scenario
async def test_a_request_that_was_refused_unread_leaves_no_connection_behind(
    edge: EdgeWorld,
) -> None:
    client = edge.server.connect()
    head = chat().replace(b"POST", b"PUT")[: -len(BODY)]
    await client.send(head)
    await answered(client)
    await asyncio.sleep(4)
    await client.send(BODY)

    await client.ended_connection.wait()

    assert client.statuses == [405]


@scenario
async def test_a_client_that_does_not_read_holds_its_replica_back_until_it_does(
    edge: EdgeWorld,
) -> None:
    written = 0

    async def floods(request: ReplicaRequest, wire: Wire) -> None:
        nonlocal written
        wire.head(200)
        for _ in range(1000):
            await wire.write(b"x" * 998 + b"\n\n")
            written += 1000

    edge.script = floods
    client = edge.server.connect()
    client.is_reading = False
    await client.send(chat(orjson.dumps(CHAT | {"stream": True})))
    await asyncio.sleep(5)
    held_at = written
    await asyncio.sleep(5)
    assert 0 < held_at == written < 200_000

    client.read_on()
    await answered(client)

    assert (written, len(client.content)) == (1_000_000, 1_000_000)
    client.hang_up()


@scenario
async def test_a_stream_is_one_write_a_turn(edge: EdgeWorld) -> None:
    edge.script = streams(3)
    client = edge.server.connect()
    await client.send(chat(orjson.dumps(CHAT | {"stream": True})))
    await answered(client)

    assert client.writes == 3, "head and first event, another one, the last one and the end"
    client.hang_up()


@scenario
async def test_a_document_is_one_write(edge: EdgeWorld) -> None:
    edge.script = says("hello")
    client = edge.server.connect()
    await client.send(chat())
    await answered(client)

    assert client.writes == 1
    client.hang_up()


@pytest.mark.parametrize("drop", [b"x-trailer: y\r\n", b"x"], ids=["many", "one that never ends"])
def test_trailers_without_end_are_refused(drop: bytes) -> None:
    @scenario
    async def check(edge: EdgeWorld) -> None:
        client = edge.server.connect()
        body = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
        await client.send(chat(body, "1.1", "transfer-encoding: chunked"))

        sent_bytes = 0
        while client.is_open and sent_bytes < 1 << 20:
            await client.send(drop * 1000)
            sent_bytes += len(drop) * 1000

        assert client.statuses == [400]
        assert sent_bytes <= bounded_http.MOST_FRAMING_BYTES + len(drop) * 1000
        assert edge.is_asleep()

    check()


@scenario
async def test_a_head_behind_a_large_body_is_not_taken_for_a_large_head(edge: EdgeWorld) -> None:
    client = edge.server.connect()
    large = orjson.dumps(CHAT | {"pad": " " * bounded_http.MOST_FRAMING_BYTES})

    await client.send(chat(large) + chat(b"{")[:20])
    await client.send(chat(b"{")[20:])
    await answered(client, 2)

    assert client.statuses == [200, 400]
    assert client.is_open
    client.hang_up()


@pytest.mark.parametrize("behind", [chat(), HEALTH], ids=["hot", "ordinary"])
def test_nothing_behind_a_request_that_ends_the_connection_is_begun(behind: bytes) -> None:
    @scenario
    async def check(edge: EdgeWorld) -> None:
        client = edge.server.connect()
        body = b"x" * (2 * SMALL_BYTES)  # refused unread, and the connection closed
        refused = chat(body).replace(b"POST", b"PUT")

        await client.send(refused[: -len(body)])
        await client.send(body + behind)
        await edge.settled()

        assert client.statuses == [405]
        assert not client.is_open
        assert edge.is_asleep()

    check()


@scenario
async def test_half_a_request_ahead_of_time_does_not_end_the_one_that_is_answered(
    edge: EdgeWorld,
) -> None:
    edge.script = says("late", seconds=2 * bounded_http.REQUEST_S)
    client = edge.server.connect()
    await client.send(chat() + chat(b"{")[:20])
    await client.send(chat(b"{")[20:])

    await answered(client, 2)

    assert client.statuses == [200, 400]
    client.hang_up()
