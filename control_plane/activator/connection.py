"""One keep-alive HTTP/1.1 connection to a replica, one exchange at a time (RFC 9112)."""

import asyncio
from enum import Enum, auto
from typing import Final, Protocol, cast

import httptools

from control_plane.activator.replica_client import Headers, Reader
from infra.outbox import HeldTransport, Outbox

MAX_HEAD_BYTES: Final = 64 << 10


class _Phase(Enum):
    IDLE = auto()  # kept for the next exchange
    HEAD = auto()  # a request is out, the answer's head is not in
    BODY = auto()  # the head is in, the body is not whole
    WHOLE = auto()  # the body is whole, its reader is not told yet
    CLOSED = auto()  # of no more use


# A member that is looked up in its class takes eight times as long, and ten are a request.
_IDLE: Final = _Phase.IDLE
_HEAD: Final = _Phase.HEAD
_BODY: Final = _Phase.BODY
_WHOLE: Final = _Phase.WHOLE
_CLOSED: Final = _Phase.CLOSED


class Pool(Protocol):
    """Whose connection it is."""

    def freed(self, connection: "Connection") -> None:
        """It may be used again."""
        ...

    def closed(self, connection: "Connection") -> None:
        """It is of no more use."""
        ...


class Sender(Protocol):
    """Whose request it carries."""

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
        "_fields",
        "_framing_bytes",
        "_has_answered",
        "_has_excess",
        "_headers",
        "_is_interim",
        "_is_paused",
        "_is_reusable",
        "_outbox",
        "_parser",
        "_phase",
        "_pool",
        "_reader",
        "_sender",
        "_status",
        "_transport",
    )

    def __init__(self, pool: Pool, outbox: Outbox) -> None:
        self._pool = pool
        self._outbox: Final = outbox
        self._parser = httptools.HttpResponseParser(self)
        self._transport: HeldTransport | None = None
        self._sender: Sender | None = None
        self._reader: Reader | None = None
        self._phase = _IDLE
        self._status = 0
        self._headers: Headers | None = None  # of a head whose reader is not told yet
        self._has_answered = False
        self._is_reusable = False
        self._is_interim = False
        self._has_excess = False
        self._is_paused = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._framing_bytes = 0  # received since the last body byte: heads, chunk sizes, trailers

    # The caller's side

    def begin(self, sender: Sender, request: tuple[bytes, bytes], reader: Reader) -> bool:
        """Sends head and body; the reader is told of the answer, the sender if it breaks.

        False if it was closed meanwhile.
        """
        if self._transport is None or self._phase is not _IDLE:
            return False
        self._sender = sender
        self._reader = reader
        self._phase = _HEAD
        self._has_answered = False
        self._fields = []
        self._framing_bytes = 0
        head, body = request
        self._transport.write(head)
        self._transport.write(body)
        return True

    def pause(self, sender: Sender) -> None:
        """Holds the replica back, while it answers the sender."""
        if self._sender is sender and self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self, sender: Sender) -> None:
        """Lets it go on."""
        if self._sender is sender:
            self._read_on()

    def _read_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def abandon(self, sender: Sender) -> None:
        """The sender gives up: closes at once without a word, unless it carries others' by now."""
        if self._sender is sender:
            self._sender = self._reader = None
            self.abort("the exchange was given up")

    def abort(self, why: str) -> None:
        """Closes at once, without waiting for what is still to be written."""
        if self._phase is _CLOSED:
            return
        self._phase = _CLOSED
        if self._transport is not None:
            self._transport.abort()
        sender, self._sender, self._reader = self._sender, None, None
        if sender is not None:
            sender.lost(why, has_answered=self._has_answered)

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._outbox.hold(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        if self._phase is not _HEAD and self._phase is not _BODY:
            self.abort("it spoke without being asked")
            return
        self._has_answered = True
        self._framing_bytes += len(data)
        failure = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_reusable = False
            failure = f"its answer is not HTTP: {error.__context__ or error}"
        if self._framing_bytes > MAX_HEAD_BYTES:
            failure = failure or f"its head exceeds {MAX_HEAD_BYTES} bytes"
        self._tell()
        if failure and self._phase in (_HEAD, _BODY):
            self.abort(failure)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.abort(
            f"it closed the connection {_WHEN_ANSWERING if self._has_answered else _WHEN_ASKED}"
        )
        self._pool.closed(self)

    def _tell(self) -> None:
        """Hands on what one read brought; after each word the reader may have left."""
        if self._headers is not None and self._reader is not None:
            headers, self._headers = self._headers, None
            self._reader.head(self._status, headers)
        if self._chunks:
            chunks, self._chunks = self._chunks, []
            if self._reader is not None:
                self._reader.body(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if self._phase is _WHOLE:
            reader, self._sender, self._reader = self._reader, None, None
            self._be_free()
            if reader is not None:
                reader.end()

    def _be_free(self) -> None:
        if self._is_reusable and self._transport is not None:
            self._phase = _IDLE
            if self._is_paused:
                self._read_on()
            self._pool.freed(self)
        else:
            self.abort("it is not kept open")

    # The parser's side

    def on_message_begin(self) -> None:
        self._has_excess = self._phase is not _HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is _HEAD:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._has_excess:
            return
        status = self._parser.get_status_code()
        if not 100 <= status <= 599:
            raise ValueError(f"its status is {status}")
        self._is_interim = status < 200
        if self._is_interim:
            self._fields = []
            return
        self._status = status
        self._headers = tuple(self._fields)
        self._phase = _BODY

    def on_body(self, body: bytes) -> None:
        if self._has_excess:
            return
        self._framing_bytes = 0
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._is_interim and not self._has_excess:
            return
        self._is_reusable = self._parser.should_keep_alive() and not self._has_excess
        self._phase = _WHOLE


_WHEN_ASKED: Final = "without an answer"
_WHEN_ANSWERING: Final = "before its answer was whole"
