"""A replica's server with a scripted engine, called in process or over loopback."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, MutableMapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop

from infra.bounded_http import OUTLET, Pausable
from infra.virtual_time import LoopClock
from worker.engine.fake import FakeEngine, Script
from worker.server.app import ReplicaServer
from worker.server.byte_tokenizer import ByteTokenizer
from worker.server.ports import Engine, Tokenizer

TOKEN = "secret"
AUTHORIZATION = (b"authorization", b"Bearer secret")


def make_server(
    engine: Engine, tokenizer: Tokenizer | None = None, **options: Any
) -> ReplicaServer:
    return ReplicaServer(
        engine,
        tokenizer or ByteTokenizer(),
        model="chat",
        revision="chat@1",
        token=TOKEN,
        clock=LoopClock(),
        **options,
    )


def engine_saying(*pieces: str, **script: Any) -> FakeEngine:
    """A millisecond apart unless told otherwise, as steps are: what comes at once is one event."""
    return FakeEngine(Script(pieces=pieces, **{"delay_s": 0.001, **script}))


@dataclass
class Reply:
    """What a client got: each write with the loop's time at which it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    writes: list[tuple[float, bytes]] = field(default_factory=list)
    is_complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.writes)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Data of the events; `[DONE]` as it is; comments are left out."""
        blocks = self.body.decode().removesuffix("\n\n").split("\n\n")
        data = [block.split("data: ", 1)[1] for block in blocks if block[0] != ":"]
        return [one if one == "[DONE]" else orjson.loads(one) for one in data]


class Reading(asyncio.Event):
    """Whether a client reads, of which a writer is told."""

    def __init__(self) -> None:
        super().__init__()
        self.writer: Pausable | None = None
        super().set()

    def set(self) -> None:
        super().set()
        if self.writer is not None:
            self.writer.resume()

    def clear(self) -> None:
        super().clear()
        if self.writer is not None:
            self.writer.pause()


@dataclass
class Client:
    """One ASGI request; the test may leave, or stop reading, whenever it likes."""

    path: str
    body: bytes
    method: str = "POST"
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [AUTHORIZATION])
    reply: Reply = field(default_factory=Reply)
    has_left: asyncio.Event = field(default_factory=asyncio.Event)
    is_reading: Reading = field(default_factory=Reading)
    _is_sent: bool = False

    async def run(self, server: ReplicaServer) -> Reply:
        scope = {
            "type": "http",
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "extensions": {OUTLET: self},
        }
        await server.routes(scope, self._receive, self._send)
        return self.reply

    def listen(self, writer: Pausable) -> None:
        """See infra.bounded_http.Outlet."""
        self.is_reading.writer = writer
        if not self.is_reading.is_set():
            writer.pause()

    def write(self, part: bytes) -> None:
        """See infra.bounded_http.Outlet."""
        self.reply.writes.append((asyncio.get_running_loop().time(), part))

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self._is_sent:
            self._is_sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        await self.is_reading.wait()
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {n.decode(): v.decode() for n, v in message["headers"]}
            return
        self.reply.writes.append((asyncio.get_running_loop().time(), message["body"]))
        self.reply.is_complete = not message["more_body"]


async def post(server: ReplicaServer, path: str, data: Any) -> Reply:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return await Client(path, body).run(server)


def chat_body(**members: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **members}


def completion_body(**members: Any) -> dict[str, Any]:
    return {"model": "chat", "prompt": "Hi", **members}


@asynccontextmanager
async def listening(server: ReplicaServer) -> AsyncIterator[int]:
    """The server on a loopback port."""
    port = await server.bind("127.0.0.1")
    try:
        yield port
    finally:
        await server.close()


class ServerThread:
    """A server on its own loop and thread, for clients that block."""

    def __init__(self, build: Callable[[], ReplicaServer]) -> None:
        self._build = build
        self._server: ReplicaServer | None = None
        self._port: Future[int] = Future()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def url(self) -> str:
        """Waits until the server listens."""
        return f"http://127.0.0.1:{self._port.result(60)}"

    def close(self) -> None:
        assert self._server is not None
        asyncio.run_coroutine_threadsafe(self._server.drain(1), self._loop).result(10)
        self._thread.join(10)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            self._port.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._server = self._build()
        self._port.set_result(await self._server.bind("127.0.0.1"))
        await self._server.serve()
