import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import uvloop

from infra import bounded_http
from tests.server.support import chat_body, completion_body, engine_saying, listening, make_server
from worker.engine.fake import FakeEngine, Script
from worker.server.byte_tokenizer import ByteTokenizer

pytestmark = pytest.mark.real

CHAT = "/v1/chat/completions"
SLOW = {"first_delay_s": 0.02, "delay_s": 0.02}


def run(story: Coroutine[Any, Any, None]) -> None:
    """On the loop that production uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(story, 100))


def request_bytes(path: str = CHAT, data: Any = None, *, extra: str = "") -> bytes:
    body = json.dumps(chat_body() if data is None else data).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: replica\r\nAuthorization: Bearer secret\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def connected(
    port: int, *, receive_buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2048)
    try:
        yield reader, writer
    finally:
        writer.close()


async def response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One response with a Content-Length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(status.split(" ")[1]), headers, body


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - nobody would tell us
        await asyncio.sleep(0.001)


def leave(writer: asyncio.StreamWriter, *, politely: bool) -> None:
    if not politely:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("politely", [True, False])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tokens", [0, 3])
def test_a_client_that_leaves_is_aborted_within_a_step(
    tokens: int, stream: bool, politely: bool
) -> None:
    async def story() -> None:
        engine = engine_saying(*["a"] * 10_000, **SLOW)
        server = make_server(engine)
        async with listening(server) as port, connected(port) as (_, writer):
            writer.write(request_bytes(data=chat_body(stream=stream)))
            await until(lambda: engine.stats.generated_tokens >= tokens and bool(engine.submitted))

            leave(writer, politely=politely)
            await until(lambda: bool(engine.aborted))

            assert engine.stats.generated_tokens <= tokens + 2
            assert engine.running == set()

    run(story())


def test_a_client_that_leaves_in_the_middle_of_its_request_submits_nothing() -> None:
    async def story() -> None:
        engine = engine_saying("a")
        whole = request_bytes()
        async with listening(make_server(engine)) as port:
            for cut in (10, len(whole) // 2, len(whole) - 1):
                async with connected(port) as (_, writer):
                    writer.write(whole[:cut])
                    await writer.drain()
                    leave(writer, politely=True)
            async with connected(port) as (reader, writer):
                writer.write(request_bytes())
                assert (await response(reader))[0] == 200
            assert len(engine.submitted) == 1

    run(story())


def test_a_client_that_leaves_while_its_prompt_is_tokenised_submits_nothing() -> None:
    class Blocked(ByteTokenizer):
        def __init__(self) -> None:
            self.began = threading.Event()
            self.may_end = threading.Event()

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            self.began.set()
            self.may_end.wait(10)
            return [1]

    async def story() -> None:
        engine, tokenizer = engine_saying("a"), Blocked()
        server = make_server(engine, tokenizer)
        async with listening(server) as port, connected(port) as (_, writer):
            prompt = completion_body(prompt="x" * 5000)
            writer.write(request_bytes("/v1/completions", prompt))
            await until(tokenizer.began.is_set)

            leave(writer, politely=True)
            await until(lambda: server.in_flight == 0)
            tokenizer.may_end.set()
            await asyncio.sleep(0.02)

            assert engine.submitted == []

    run(story())


def test_a_pipelining_client_is_answered_in_order_and_noticed_when_it_leaves() -> None:
    async def story() -> None:
        engine = engine_saying(*["a"] * 5, **SLOW)
        bodies = [completion_body(seed=seed) for seed in range(3)]
        together = b"".join(request_bytes("/v1/completions", body) for body in bodies)
        async with listening(make_server(engine)) as port:
            async with connected(port) as (reader, writer):
                writer.write(together)
                await until(lambda: bool(engine.running))
                writer.write(request_bytes("/v1/completions", completion_body(seed=3)))
                for _ in range(4):
                    assert (await response(reader))[0] == 200
                seeds = [request.sampling.seed for request in engine.submitted]
                assert seeds == [0, 1, 2, 3]
            async with connected(port) as (_, writer):
                writer.write(together)
                await until(lambda: bool(engine.running))
                leave(writer, politely=True)
                await until(lambda: bool(engine.aborted))
                assert len(engine.submitted) == 5

    run(story())


def test_a_client_that_sends_without_end_while_it_is_answered_is_cut_off() -> None:
    async def story() -> None:
        engine = engine_saying(*["a"] * 10_000, **SLOW)
        async with listening(make_server(engine)) as port, connected(port) as (_, writer):
            writer.write(request_bytes())
            await until(lambda: bool(engine.running))
            writer.write(b"x" * 1_000_000)
            await until(lambda: bool(engine.aborted))

    run(story())


@pytest.mark.parametrize(
    "attack",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 400_000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 100_000,
        b"GET /" + b"a" * 400_000,
        b"POST /invoke HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /invoke HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nabc",
        b"POST /invoke HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"POST /invoke HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /invoke HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c: d\r\n\r\n",
    ],
    ids=range(10),
)
def test_what_is_not_http_gets_a_problem_and_no_second_word(attack: bytes) -> None:
    async def story() -> None:
        engine = engine_saying("a")
        async with listening(make_server(engine)) as port, connected(port) as (reader, writer):
            writer.write(attack)
            status, headers, body = await response(reader)

            assert status == 400
            assert headers["content-type"] == "application/problem+json"
            assert orjson.loads(body)["error"]["code"] == "invalid_request"
            assert engine.submitted == []

    run(story())


def test_a_connection_outlives_an_error_and_an_upload_nobody_wants() -> None:
    async def story() -> None:
        server = make_server(engine_saying("a"), most_body_bytes=1000)
        async with listening(server) as port, connected(port) as (reader, writer):
            for data, status in (({}, 400), ("x" * 500_000, 413), (chat_body(), 200)):
                writer.write(request_bytes(data=data))
                assert (await response(reader))[0] == status

    run(story())


def test_chunked_bodies_and_expectations_are_understood() -> None:
    async def story() -> None:
        body = orjson.dumps(chat_body())
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n"
            b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        )
        server = make_server(engine_saying("a"))
        async with listening(server) as port, connected(port) as (reader, writer):
            writer.write(head)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(chunks)
            assert (await response(reader))[0] == 200

    run(story())


def test_a_client_that_takes_nothing_is_cut_off_and_holds_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded_http, "STALL_S", 0.2)

    async def story() -> None:
        engine = FakeEngine(Script(pieces=("x" * 10_000,) * 2000))
        server = make_server(engine)
        async with listening(server) as port, connected(port, receive_buffer=4096) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request_bytes(data=chat_body(stream=True)))
            await until(lambda: bool(engine.submitted))
            await until(lambda: server.in_flight == 0)
            await until(lambda: server.connections == 0)

    run(story())


def test_a_request_that_never_comes_to_its_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "REQUEST_S", 0.1)

    async def story() -> None:
        server = make_server(engine_saying("a"))
        async with listening(server) as port:
            for beginning in (b"", b"POST /inv", request_bytes()[:-1]):
                async with connected(port) as (reader, writer):
                    writer.write(beginning)
                    assert await reader.read() == b""
            assert server.in_flight == server.connections == 0

    run(story())


def test_a_drain_closes_idle_connections_and_lets_streams_finish() -> None:
    async def story() -> None:
        server = make_server(engine_saying("a", "b", "c", **SLOW))
        port = await server.bind("127.0.0.1")
        async with connected(port) as (idle, idle_writer), connected(port) as (busy, writer):
            idle_writer.write(request_bytes(data={}))
            assert (await response(idle))[0] == 400
            writer.write(request_bytes(data=chat_body(stream=True)))
            await until(lambda: server.in_flight == 1)

            draining = asyncio.create_task(server.drain(5))
            assert await idle.read() == b""
            streamed = await busy.read()
            await draining

            assert streamed.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

    run(story())


def test_closing_cuts_everything_at_once() -> None:
    async def story() -> None:
        engine = engine_saying(*["a"] * 10_000, **SLOW)
        server = make_server(engine)
        port = await server.bind("127.0.0.1")
        async with connected(port) as (reader, writer):
            writer.write(request_bytes(data=chat_body(stream=True)))
            await until(lambda: engine.stats.generated_tokens > 1)

            await server.close()

            assert engine.running == set()
            assert not (await reader.read()).endswith(b"\r\n0\r\n\r\n")

    run(story())
