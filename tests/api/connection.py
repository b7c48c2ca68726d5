"""A client's connection in memory: what uvicorn would be given by a socket, and the answer read."""

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import httptools
import orjson
from uvicorn.server import ServerState

from control_plane.api.app import Edge
from control_plane.process import http_config

KEEP_ALIVE_S = 90
_HIGH_WATER = 64 << 10
_SAFE = "/?&=%,:@+"


class Server:
    """Makes connections as uvicorn does."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._config = http_config(edge, keep_alive_s=KEEP_ALIVE_S)
        self._config.load()
        self._state = ServerState()

    def connect(self) -> "Client":
        protocol = self._edge.connection(self._config, self._state, {})
        client = Client(protocol)
        protocol.connection_made(client)
        return client


class Client(asyncio.Transport):
    """The transport of a connection whose other end is a parser of answers.

    `is_reading` says whether the client takes what is written; what it does not take fills a
    buffer, as a socket's does.
    """

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("test", 80)})
        self._protocol = protocol
        self._parser = httptools.HttpResponseParser(self)
        self._is_open = True
        self._buffer = b""
        self._may_send = asyncio.Event()
        self._may_send.set()
        self.is_reading = True
        self.status = 0
        self.statuses: list[int] = []  # of whole answers
        self.interim: list[int] = []
        self.writes = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.ended = asyncio.Event()  # the answer, or the connection
        self.ended_connection = asyncio.Event()

    # What the client does

    async def send(self, data: bytes) -> bool:
        """Says whether the connection was still open."""
        await self._may_send.wait()
        if self._is_open:
            self._protocol.data_received(data)
            await asyncio.sleep(0)  # what it is answered goes out when the turn is over
        return self._is_open

    def hang_up(self) -> None:
        """The client leaves."""
        self._lose()

    def read_on(self) -> None:
        """Takes what was written meanwhile, and all that follows."""
        self.is_reading = True
        buffer, self._buffer = self._buffer, b""
        self._parser.feed_data(buffer)
        self._protocol.resume_writing()

    @property
    def answers(self) -> int:
        return len(self.statuses)

    @property
    def content(self) -> bytes:
        return b"".join(self.parts)

    @property
    def is_open(self) -> bool:
        return self._is_open

    # asyncio.Transport

    def write(self, data: Any) -> None:
        if not self._is_open:
            return
        self.writes += 1
        if self.is_reading:
            self._parser.feed_data(bytes(data))
            return
        had = len(self._buffer)
        self._buffer += data
        if had <= _HIGH_WATER < len(self._buffer):
            self._protocol.pause_writing()

    def is_closing(self) -> bool:
        return not self._is_open

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().call_soon(self._tell_of_end)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        self._may_send.clear()

    def resume_reading(self) -> None:
        self._may_send.set()

    def _lose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._tell_of_end()

    def _tell_of_end(self) -> None:
        self._may_send.set()
        self._protocol.connection_lost(None)
        self.ended.set()
        self.ended_connection.set()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self.interim.append(status)
        self.status = status

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.statuses.append(self.status)
            if self.headers.get("connection") != "close":
                self.ended.set()


class Exchange:
    """One request on a connection of its own, and its answer so far."""

    def __init__(
        self,
        server: Server,
        method: str,
        path: str,
        body: bytes | Iterable[bytes],
        headers: dict[str, str],
        *,
        length: int | None = None,
        breaks_off: bool = False,
    ) -> None:
        self.client = server.connect()
        self.was_read = 0
        if isinstance(body, bytes):
            headers = {"content-length": str(len(body) if length is None else length), **headers}
        else:
            headers = {"transfer-encoding": "chunked", **headers}
        lines = [f"{method} {quote(path, safe=_SAFE)} HTTP/1.1", "host: test"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")
        self.task = asyncio.ensure_future(self._send(head, body, breaks_off))

    async def _send(self, head: bytes, body: bytes | Iterable[bytes], breaks_off: bool) -> None:
        if isinstance(body, bytes):
            self.was_read += len(body)
            await self.client.send(head + body)
            return
        await self.client.send(head)
        for part in body:
            if part and not await self.client.send(b"%x\r\n%b\r\n" % (len(part), part)):
                return
            self.was_read += len(part)
            await asyncio.sleep(0)
        if not breaks_off:
            await self.client.send(b"0\r\n\r\n")

    @property
    def status(self) -> int:
        return self.client.status

    @property
    def headers(self) -> dict[str, str]:
        return self.client.headers

    @property
    def parts(self) -> list[bytes]:
        return self.client.parts

    @property
    def is_whole(self) -> bool:
        return self.client.answers > 0

    @property
    def content(self) -> bytes:
        return self.client.content

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return orjson.loads(self.content)

    def problem(self) -> dict[str, Any]:
        """The answer, which must be a problem with all that clients rely on."""
        assert self.headers["content-type"] == "application/problem+json", self.text
        problem: dict[str, Any] = self.json()
        assert problem["status"] == self.status
        assert problem["type"].startswith("/problems/")
        assert problem["error"]["message"] and problem["error"]["code"]
        assert "Traceback" not in self.text
        return problem

    async def done(self) -> None:
        """Returns when the answer is whole, or the connection is closed."""
        await self.client.ended.wait()
        await self.task
        self.client.hang_up()

    async def leave(self) -> None:
        """The client goes away."""
        self.client.hang_up()
        await self.task
        for _ in range(10):
            await asyncio.sleep(0)
