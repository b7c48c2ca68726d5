"""A pipelining keep-alive HTTP/1.1 connection: requests leave at once, answers come in order."""

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

LARGEST_ANSWER = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of one response."""

    status: int
    body: bytes


class HttpConnection:
    """One connection to one origin, opened when first needed and again after it was closed.

    Requests leave in the order of the calls. One that meets a connection which the peer has just
    closed as idle is sent a second time, so send only what may be repeated.
    """

    def __init__(self, url: str, *, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "localhost"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        fields = {"Host": parts.netloc} | headers
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._wire: _Wire | None = None
        self._dialling = asyncio.Lock()  # guards _wire while it is being opened
        self._in_line = 0  # callers that wait for the lock; nobody overtakes them
        self.local_address: str | None = None  # ours, on the connection that was opened last

    async def request(
        self, method: str, target: str, body: bytes = b"", *, timeout_s: float
    ) -> Answer:
        """Sends one request and waits for its answer. Raises OSError; TimeoutError is one."""
        message = (
            f"{method} {target} HTTP/1.1\r\n{self._head}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        async with asyncio.timeout(timeout_s):
            wire = self._wire
            if wire is None or not wire.is_open or self._in_line:
                wire = await self._open()
            try:
                return await wire.send(message)
            except ConnectionError:
                if not wire.was_used:
                    raise
            return await (await self._open()).send(message)

    def close(self) -> None:
        """Closes the connection; what waits on it raises ConnectionError."""
        if self._wire is not None:
            self._wire.abort()

    async def _open(self) -> "_Wire":
        self._in_line += 1
        try:
            async with self._dialling:
                if self._wire is None or not self._wire.is_open:
                    self._wire = await self._dial()
                return self._wire
        finally:
            self._in_line -= 1

    async def _dial(self) -> "_Wire":
        transport, wire = await asyncio.get_running_loop().create_connection(
            _Wire,
            self._host,
            self._port,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        self.local_address = transport.get_extra_info("sockname")[0]
        return wire


class _Wire(asyncio.Protocol):
    """One open connection; `was_used`: at least one answer came over it."""

    def __init__(self) -> None:
        self.is_open = False
        self.was_used = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._body = bytearray()

    async def send(self, message: bytes) -> Answer:
        """Writes at once; the answer is the next one after those already awaited."""
        if not self.is_open or self._transport is None:
            raise ConnectionResetError("the connection is closed")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._transport.write(message)
        try:
            return await answer
        except asyncio.CancelledError:
            self.abort()  # its answer would be taken for the next one's
            raise

    def abort(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(ConnectionResetError("the peer closed the connection"))

    # httptools -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > LARGEST_ANSWER:
            self.abort()

    def on_message_complete(self) -> None:
        if not self._waiting:
            self.abort()
            return
        self.was_used = True
        if not self._parser.should_keep_alive():
            self.is_open = False
        answer = self._waiting.popleft()
        if not answer.done():
            answer.set_result(Answer(self._parser.get_status_code(), bytes(self._body)))
