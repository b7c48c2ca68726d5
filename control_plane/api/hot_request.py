"""One hot request on its connection: what its client has sent, and what it is answered."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from control_plane.activator.call import Header, TokenCount
from control_plane.activator.exchange import Exchange
from control_plane.api.intake import Body, length_of
from control_plane.api.targets import Target
from control_plane.tenancy.identity import Identity
from infra.contracts.base import ModelName, RequestId, RevisionName
from infra.errors import PlatformError
from infra.outbox import HeldTransport

LINGER_S: Final = 2.0
SMALL_BYTES: Final = 64 << 10
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(Protocol):
    """Where the request came from."""

    held: HeldTransport

    @property
    def date(self) -> bytes:
        """The header line that says what time it is."""
        ...

    @property
    def is_stalled(self) -> bool:
        """Its client takes nothing more for now."""
        ...

    def on_response_complete(self) -> None:
        """The next request may be answered."""
        ...


class Desk(Protocol):
    """Who answers hot requests: told of each one's head, of its body, of its end."""

    def open(self, request: "HotRequest") -> None:
        """Its turn has come; refuses what its head is enough to refuse."""
        ...

    def answer(self, request: "HotRequest") -> None:
        """The body is whole: all that follows is told the request."""
        ...

    def fail(self, request: "HotRequest", error: Exception) -> None:
        """There is no answer, or no more of it."""
        ...

    def settle(self, request: "HotRequest", outcome: int) -> None:
        """It is over, with a status code; may be repeated."""
        ...


class _Nobody:
    """uvicorn wakes the task of an ASGI app with an event; here is no task."""

    def set(self) -> None:
        pass


class HotRequest:
    """To uvicorn one of its cycles, to the activator the client of a call.

    A request that was sent ahead keeps its parts until its turn comes. What is refused before its
    body was read is answered at once; a body that is not small is then read on for a moment, since
    closing on unread bytes would reset the connection, and the client might lose the answer
    (RFC 9112, section 9.6).
    """

    __slots__ = (
        "_connection",
        "_desk",
        "_early",
        "_head",
        "_is_chunked",
        "_is_refused",
        "_linger",
        "_transport",
        "arrived_at",
        "body",
        "caller",
        "disconnected",
        "exchange",
        "headers",
        "is_http_1_1",
        "is_streaming",
        "keep_alive",
        "method",
        "model",
        "more_body",
        "most_bytes",
        "path",
        "request_id",
        "response_complete",
        "revision",
        "status",
        "target",
        "tokens",
    )

    message_event = _Nobody()

    def __init__(
        self,
        desk: Desk,
        connection: Connection,
        target: Target,
        headers: dict[bytes, bytes],
        method: bytes,
        path: str,
        is_http_1_1: bool,
        keep_alive: bool,
    ) -> None:
        self._desk = desk
        self._connection = connection
        self._transport: Final = connection.held
        self._early: list[bytes] | None = []
        self._head = b""
        self._is_chunked = False
        self._is_refused = False
        self._linger: asyncio.TimerHandle | None = None
        self.target = target
        self.headers = headers
        self.method = method
        self.path = path
        self.is_http_1_1 = is_http_1_1
        self.keep_alive = keep_alive
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self.status = 0
        self.request_id = RequestId("")
        self.arrived_at = 0.0
        self.most_bytes = 0
        self.body: Body | None = None
        self.caller: Identity | None = None  # while its visit lasts
        self.tokens: TokenCount | None = None
        self.exchange: Exchange | None = None
        self.model: ModelName | None = None
        self.revision: RevisionName | None = None
        self.is_streaming = False

    # -- what its client does ------------------------------------------------------------------

    def begin(self) -> None:
        """Its turn has come."""
        self._desk.open(self)
        early, self._early = self._early, None
        if early is None or self._is_refused:
            return
        if self.more_body and not early and self._waits_for_us:
            self._transport.write(_CONTINUE)
        for part in early:
            self.receive(part)
        if not self.more_body:
            self._answer()

    def receive(self, part: bytes) -> None:
        """A part of the body."""
        if self._early is not None:
            self._early.append(part)
        elif self.body is not None and not self._is_refused:
            try:
                self.body.add(part, most_bytes=self.most_bytes)
            except PlatformError as error:
                self._desk.fail(self, error)

    def end(self) -> None:
        """The body is whole."""
        self.more_body = False
        if self._early is None:
            self._answer()

    def leave(self) -> None:
        """Its client is gone."""
        self.disconnected = True
        self._stop_lingering()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.leave()
        self._desk.settle(self, CLIENT_LEFT)

    def _answer(self) -> None:
        if self._linger is not None:
            self._hang_up()
        elif not self._is_refused:
            self._desk.answer(self)
            if self._connection.is_stalled and self.exchange is not None:
                self.exchange.pause()

    # -- what it is answered -------------------------------------------------------------------

    @property
    def has_started(self) -> bool:
        return self.status != 0

    @property
    def is_over(self) -> bool:
        return self.response_complete or self.disconnected

    def start(self, status: int, headers: Sequence[Header]) -> None:
        """See Downstream; the head goes out with what follows."""
        self.status = status
        self._is_chunked = self.is_http_1_1
        lines = [STATUS_LINE[status], self._connection.date]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._is_chunked = False
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def send(self, data: bytes) -> None:
        """See Downstream."""
        if self._is_chunked and data:
            data = _chunk(data)
        self._write(data)

    def finish(self, data: bytes = b"") -> None:
        """See Downstream."""
        if self._is_chunked:
            data = _chunk(data) + _LAST_CHUNK if data else _LAST_CHUNK
        self._write(data)
        self._desk.settle(self, self.status)
        self._complete()

    def fail(self, error: Exception) -> None:
        """See Downstream."""
        if not self.is_over:
            self._desk.fail(self, error)

    def refuse(self, status: int, headers: Sequence[Header], content: bytes) -> None:
        """Answers without having read what is left of the body."""
        self._is_refused = True
        if self.method == b"HEAD":
            content = b""
        if not self.more_body or self._is_small:
            self.start(status, headers)
            self.finish(content)
            return
        self.keep_alive = False
        self.start(status, headers)
        self.send(content)
        loop = asyncio.get_running_loop()
        self._linger = loop.call_later(LINGER_S, self._hang_up)

    @property
    def _is_small(self) -> bool:
        """It says that its body is short enough to be read although nobody needs it."""
        length = length_of(self.headers.get(b"content-length"))
        return length is not None and length <= SMALL_BYTES

    @property
    def _waits_for_us(self) -> bool:
        """It sends its body once it is told to go on (RFC 9110, section 10.1.1)."""
        expects = self.headers.get(b"expect")
        return expects is not None and self.is_http_1_1 and expects.lower() == b"100-continue"

    def cut(self) -> None:
        """Breaks off an answer whose length was promised."""
        self.keep_alive = False
        self._complete()

    def _write(self, data: bytes) -> None:
        if self.response_complete or self.disconnected:
            return
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._transport.write(data)

    def _hang_up(self) -> None:
        self._stop_lingering()
        self._complete()

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _complete(self) -> None:
        if self.is_over:
            return
        self.response_complete = True
        self.exchange = None
        if not self.keep_alive:
            self._transport.close()
        self._connection.on_response_complete()


CLIENT_LEFT: Final = 499
_LAST_CHUNK: Final = b"0\r\n\r\n"
_SIZES: Final = [b"%x\r\n" % size for size in range(1024)]  # of events, as they are written


def _chunk(data: bytes) -> bytes:
    """Framed as RFC 9112, section 7.1 says."""
    size = len(data)
    return (_SIZES[size] if size < len(_SIZES) else b"%x\r\n" % size) + data + b"\r\n"
