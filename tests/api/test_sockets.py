"""The edge on real sockets, under uvicorn as `platform up` runs it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
import pytest
import uvicorn

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.api import hot_request
from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from infra.contracts.stage import Stage
from tests.activator.world import streams
from tests.api.world import CHAT, EdgeWorld
from tests.fleet.world import World

SHAPE = MachineShape(fork_s=0.001, spawn_s=0.001)
SCRIPT = Script(stages=(Climbing(Stage.RUNTIME, 0.001), Climbing(Stage.ENGINE, 0.001)))
BODY = orjson.dumps(CHAT)


class Connection:
    """A client that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def ask(self, body: bytes = BODY, path: str = "/v1/chat/completions") -> None:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        await self.say(head.encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        return int(status.split()[1]), dict(line.split(": ", 1) for line in lines)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        if "content-length" in headers:
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        body = b""
        while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return status, headers, body

    def leave(self) -> None:
        self.writer.transport.abort()


class Served:
    """An edge that listens."""

    def __init__(self, edge: EdgeWorld, port: int) -> None:
        self.edge = edge
        self.port = port
        self.connections: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self.connections.append(connection)
        return connection

    async def until_quiet(self) -> None:
        """Waits until the edge has noticed every end, then checks that nothing is left."""
        for _ in range(200):
            await asyncio.sleep(0.005)
            with suppress(AssertionError):
                self.edge.check()
                return
        self.edge.check()


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    async with World(shape=SHAPE, script=SCRIPT) as world:
        edge = EdgeWorld(world)
        await world.deploy("chat")
        server = uvicorn.Server(
            uvicorn.Config(
                edge.edge.app,
                port=0,
                http=edge.edge.connection,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup()
        served = Served(edge, server.servers[0].sockets[0].getsockname()[1])
        try:
            yield served
            for connection in served.connections:
                connection.leave()
            await served.until_quiet()
        finally:
            await server.shutdown()
            await edge.replicas.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


async def test_one_connection_carries_one_request_after_another(served: Served) -> None:
    connection = await served.connect()

    for _ in range(3):
        await connection.ask()
        status, headers, body = await connection.answer()
        assert (status, body) == (200, b'{"text":"hello"}')
        assert "server" not in headers
    await connection.ask(b"{")
    assert (await connection.answer())[0] == 400
    await connection.ask()
    assert (await connection.answer())[0] == 200


async def test_requests_sent_ahead_are_answered_in_order(served: Served) -> None:
    connection = await served.connect()

    for _ in range(5):
        await connection.ask()
    for _ in range(5):
        assert (await connection.answer())[0] == 200


GARBAGE: dict[str, bytes] = {
    "not http": b"\x16\x03\x01\x02\x00\x01\x00" * 10,
    "two lengths": b"POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a negative length": b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "a length of 2^70": b"POST / HTTP/1.1\r\ncontent-length: 1180591620717411303424\r\n\r\n",
    "a length and chunks": (
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "bad chunks": b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "a line break in a header": b"GET / HTTP/1.1\r\na: b\rc: d\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\na : b\r\n\r\n",
    "a head without end": b"GET / HTTP/1.1\r\na: " + b"x" * 200_000,
    "headers without end": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000,
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_not_http_gets_a_problem(served: Served, name: str) -> None:
    connection = await served.connect()

    await connection.say(GARBAGE[name])
    status, headers, body = await connection.answer()

    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert orjson.loads(body)["type"] == "/problems/invalid-request"
    assert headers["connection"] == "close"


async def test_a_hundred_megabytes_are_refused_and_the_answer_arrives(served: Served) -> None:
    connection = await served.connect()
    body = b'{"model":"' + b"x" * 100_000_000

    asking = asyncio.ensure_future(connection.ask(body))
    status, _, answer = await connection.answer()

    assert (status, orjson.loads(answer)["limit"]) == (413, 4 << 20)
    await asking
    assert await connection.reader.read() == b""


async def test_a_client_that_asks_before_it_sends_is_told_no(served: Served) -> None:
    connection = await served.connect()

    await connection.say(
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999\r\nexpect: 100-continue\r\n\r\n"
    )

    assert (await connection.answer())[0] == 413


async def test_a_body_without_end_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_request, "LINGER_S", 0.05)
    connection = await served.connect()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        await connection.say(b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
        while not connection.writer.is_closing():
            await connection.say(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536

    flooding = asyncio.ensure_future(flood())
    status, _, _ = await connection.answer()
    assert status == 413
    with suppress(ConnectionError):
        await asyncio.wait_for(connection.reader.read(), 60)
    flooding.cancel()
    assert sent < 16 << 30


async def test_a_client_that_leaves_while_held_is_noticed(served: Served) -> None:
    served.edge.lines._wake = lambda _: None
    connection = await served.connect()
    await connection.ask()
    await asyncio.sleep(0.02)

    connection.leave()
    await served.until_quiet()

    assert served.edge.replicas.sent == []


async def test_a_client_that_leaves_in_mid_stream_stops_the_replica(served: Served) -> None:
    served.edge.script = streams(10_000, seconds=0.005)
    connection = await served.connect()
    await connection.ask(orjson.dumps(CHAT | {"stream": True}))
    await connection.head()
    await connection.reader.readuntil(b"data: 3")

    connection.leave()
    await served.until_quiet()

    assert len(served.edge.replicas.aborted) == 1


async def test_a_client_that_does_not_read_holds_its_replica_back(served: Served) -> None:
    written = 0

    async def floods(request: ReplicaRequest, wire: Wire) -> None:
        nonlocal written
        wire.head(200)
        while True:
            await wire.write(b"x" * 16382 + b"\n\n")
            written += 16384
            await asyncio.sleep(0)

    served.edge.script = floods
    connection = await served.connect()
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await connection.ask(orjson.dumps(CHAT | {"stream": True}))
    await asyncio.sleep(0.3)
    first = written
    await asyncio.sleep(0.1)

    assert 0 < first == written < 16 << 20, "what the kernel's buffers take, no more"


async def test_many_clients_at_once_are_all_served(served: Served) -> None:
    async def one() -> int:
        connection = await served.connect()
        await connection.ask()
        return (await connection.answer())[0]

    assert set(await asyncio.gather(*(one() for _ in range(200)))) == {200}
    assert served.edge.world.started() == 1
