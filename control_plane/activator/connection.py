"""One keep-alive HTTP/1.1 connection to a replica, one exchange at a time (RFC 9112)."""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import cast

import httptools

from control_plane.activator.replica_client import Headers, ReplicaGone

MAX_HEAD_BYTES = 64 << 10
MAX_UNREAD_BYTES = 64 << 10


class _Phase(Enum):
    IDLE = auto()  # kept for the next exchange
    HEAD = auto()  # a request is out, the answer's head is not in
    BODY = auto()  # the head is in, the body is not whole
    WHOLE = auto()  # the body is whole, maybe not read yet
    CLOSED = auto()  # of no more use


class Connection(asyncio.Protocol):
    """Sends a request, gives the answer's head, then its body as it comes.

    Reading from the socket stops while more than MAX_UNREAD_BYTES wait to be read. An answer
    without a length or chunks would end in silence when the replica dies, so it counts as broken.
    """

    def __init__(self, on_closed: Callable[["Connection"], None]) -> None:
        self.status = 0
        self.headers: Headers = ()
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._phase = _Phase.IDLE
        self._failure: str | None = None
        self._has_answered = False
        self._is_reusable = False
        self._is_interim = False
        self._has_excess = False
        self._is_paused = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._unread_bytes = 0
        self._framing_bytes = 0  # received since the last body byte: heads, chunk sizes, trailers
        self._progress: asyncio.Future[None] | None = None

    # The caller's side

    @property
    def is_idle(self) -> bool:
        return self._phase is _Phase.IDLE and self._transport is not None

    @property
    def has_answered(self) -> bool:
        """Whether any byte of an answer to the last request has arrived."""
        return self._has_answered

    async def exchange(self, *request: bytes) -> None:
        """Sends the request's bytes, returns when the head is in; raises ReplicaGone."""
        assert self.is_idle, "one exchange at a time"
        assert self._transport is not None
        self._phase = _Phase.HEAD
        self._has_answered = False
        self._fields = []
        self._framing_bytes = 0
        self._transport.writelines(request)
        while self._phase is _Phase.HEAD:
            await self._news()
        if self.status == 0:
            raise self._gone()

    async def read(self) -> bytes:
        """See ReplicaResponse.read."""
        while not self._chunks:
            if self._phase is _Phase.WHOLE:
                return b""
            if self._phase is _Phase.CLOSED:
                raise self._gone()
            await self._news()
        chunks, self._chunks = self._chunks, []
        self._make_room()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def finish(self) -> None:
        """The caller is done: back to idle after a whole answer, closed otherwise."""
        self.status = 0
        self._chunks = []
        if self._phase is _Phase.WHOLE and self._is_reusable:
            self._phase = _Phase.IDLE
            self._make_room()
        else:
            self.abort("the exchange was given up")

    def abort(self, why: str) -> None:
        """Closes at once, without waiting for what is still to be written."""
        if self._phase is _Phase.CLOSED:
            return
        self._phase = _Phase.CLOSED
        self._failure = why
        if self._transport is not None:
            self._transport.abort()
        self._tell()

    def _make_room(self) -> None:
        self._unread_bytes = 0
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def _gone(self) -> ReplicaGone:
        return ReplicaGone(self._failure or "the connection was closed")

    async def _news(self) -> None:
        self._progress = self._loop.create_future()
        try:
            await self._progress
        finally:
            self._progress = None

    def _tell(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        match self._phase:
            case _Phase.HEAD | _Phase.BODY:
                self._parse(data)
            case _Phase.WHOLE:
                self._is_reusable = False  # it said more than it was asked
            case _Phase.IDLE:
                self.abort("it spoke without being asked")
            case _Phase.CLOSED:
                pass

    def _parse(self, data: bytes) -> None:
        self._has_answered = True
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_reusable = False
            if self._phase is not _Phase.WHOLE:
                self.abort(f"its answer is not HTTP: {error}")
        if self._framing_bytes > MAX_HEAD_BYTES and self._phase is not _Phase.WHOLE:
            self.abort(f"its head exceeds {MAX_HEAD_BYTES} bytes")
        if self._unread_bytes > MAX_UNREAD_BYTES and not self._is_paused:
            assert self._transport is not None
            self._is_paused = True
            self._transport.pause_reading()
        self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        if self._phase is not _Phase.WHOLE:
            why = "before its answer was whole" if self._has_answered else "without an answer"
            self.abort(f"it closed the connection {why}")
        self._is_reusable = False
        self._transport = None
        self._on_closed(self)

    # The parser's side

    def on_message_begin(self) -> None:
        self._has_excess = self._phase is not _Phase.HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is _Phase.HEAD:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._has_excess:
            return
        status = self._parser.get_status_code()
        self._is_interim = status < 200
        if self._is_interim:
            self._fields = []
            return
        self.status = status
        self.headers = tuple(self._fields)
        self._phase = _Phase.BODY

    def on_body(self, body: bytes) -> None:
        if self._has_excess:
            return
        self._framing_bytes = 0
        self._chunks.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._is_interim and not self._has_excess:
            return
        self._phase = _Phase.WHOLE
        self._is_reusable = self._parser.should_keep_alive() and not self._has_excess
