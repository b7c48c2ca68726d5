"""One keep-alive HTTP/1.1 connection to a replica, one exchange at a time (RFC 9112)."""

import asyncio
from enum import Enum, auto
from typing import Protocol, cast

import httptools

from control_plane.activator.replica_client import Headers

MAX_HEAD_BYTES = 64 << 10


class _Phase(Enum):
    IDLE = auto()  # kept for the next exchange
    HEAD = auto()  # a request is out, the answer's head is not in
    BODY = auto()  # the head is in, the body is not whole
    WHOLE = auto()  # the body is whole, its reader is not told yet
    CLOSED = auto()  # of no more use


class Pool(Protocol):
    """Whose connection it is."""

    def freed(self, connection: "Connection") -> None:
        """It may be used again."""
        ...

    def closed(self, connection: "Connection") -> None:
        """It is of no more use."""
        ...


class Exchanging(Protocol):
    """Whose exchange it is: a Reader that is told how far a connection came which breaks."""

    def head(self, status: int, headers: Headers) -> None: ...

    def body(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def lost(self, why: str, *, has_answered: bool) -> None:
        """The connection broke; `has_answered`: after some byte of an answer."""
        ...


class Connection(asyncio.Protocol):
    """Sends a request, and tells what comes back as it comes.

    An answer without a length or chunks would end in silence when the replica dies, so it counts
    as broken.
    """

    __slots__ = (
        "_chunks",
        "_exchange",
        "_fields",
        "_framing_bytes",
        "_has_answered",
        "_has_excess",
        "_headers",
        "_is_interim",
        "_is_paused",
        "_is_reusable",
        "_parser",
        "_phase",
        "_pool",
        "_status",
        "_transport",
        "_why",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchanging | None = None
        self._phase = _Phase.IDLE
        self._status = 0
        self._headers: Headers | None = None  # of a head whose reader is not told yet
        self._why = ""
        self._has_answered = False
        self._is_reusable = False
        self._is_interim = False
        self._has_excess = False
        self._is_paused = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._framing_bytes = 0  # received since the last body byte: heads, chunk sizes, trailers

    # The caller's side

    @property
    def is_idle(self) -> bool:
        return self._phase is _Phase.IDLE and self._transport is not None

    def begin(self, exchange: Exchanging, request: tuple[bytes, ...]) -> None:
        """Sends the request's bytes."""
        assert self.is_idle, "one exchange at a time"
        assert self._transport is not None
        self._exchange = exchange
        self._phase = _Phase.HEAD
        self._has_answered = False
        self._fields = []
        self._framing_bytes = 0
        self._transport.writelines(request)

    def pause(self) -> None:
        """Holds the replica back."""
        if self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Lets it go on."""
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def abandon(self) -> None:
        """The caller left: closes at once, without a word to anybody."""
        self._exchange = None
        self.abort("the exchange was given up")

    def abort(self, why: str) -> None:
        """Closes at once, without waiting for what is still to be written."""
        if self._phase is _Phase.CLOSED:
            return
        self._phase = _Phase.CLOSED
        self._why = why
        if self._transport is not None:
            self._transport.abort()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(why, has_answered=self._has_answered)

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.HEAD or self._phase is _Phase.BODY:
            self._parse(data)
        elif self._phase is _Phase.IDLE:
            self.abort("it spoke without being asked")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.abort(
            f"it closed the connection {_WHEN_ANSWERING if self._has_answered else _WHEN_ASKED}"
        )
        self._pool.closed(self)

    def _parse(self, data: bytes) -> None:
        self._has_answered = True
        self._framing_bytes += len(data)
        failure = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_reusable = False
            failure = f"its answer is not HTTP: {error}"
        if self._framing_bytes > MAX_HEAD_BYTES:
            failure = failure or f"its head exceeds {MAX_HEAD_BYTES} bytes"
        self._tell()
        if failure and self._phase in (_Phase.HEAD, _Phase.BODY):
            self.abort(failure)

    def _tell(self) -> None:
        """Hands on what one read brought; after each word the reader may have left."""
        if self._headers is not None and self._exchange is not None:
            headers, self._headers = self._headers, None
            self._exchange.head(self._status, headers)
        if self._chunks:
            chunks, self._chunks = self._chunks, []
            if self._exchange is not None:
                self._exchange.body(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if self._phase is _Phase.WHOLE:
            exchange, self._exchange = self._exchange, None
            self._be_free()
            if exchange is not None:
                exchange.end()

    def _be_free(self) -> None:
        if self._is_reusable and self._transport is not None:
            self._phase = _Phase.IDLE
            self.resume()
            self._pool.freed(self)
        else:
            self.abort("it is not kept open")

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
        self._status = status
        self._headers = tuple(self._fields)
        self._phase = _Phase.BODY

    def on_body(self, body: bytes) -> None:
        if self._has_excess:
            return
        self._framing_bytes = 0
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._is_interim and not self._has_excess:
            return
        self._is_reusable = self._parser.should_keep_alive() and not self._has_excess
        self._phase = _Phase.WHOLE


_WHEN_ASKED = "without an answer"
_WHEN_ANSWERING = "before its answer was whole"
