"""uvicorn's HTTP protocol with the bounds that a server needs which strangers talk to."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from infra.errors import Invalid
from infra.outbox import HeldTransport, Outbox

DEPARTURE = "firstlight.departure"
OUTLET = "firstlight.outlet"
PROBLEM_TYPE = "application/problem+json"
REQUEST_S: Final = 60.0
STALL_S: Final = 60.0
MOST_FRAMING_BYTES: Final = 64 << 10
MOST_EARLY_BYTES: Final = 64 << 10


class Departure:
    """Tells one listener that the client left before it was answered; costs next to nothing, where
    a task that waits for ASGI's `http.disconnect` costs as much as half a request.

    `scope["extensions"][DEPARTURE]` of every request under BoundedHttp.
    """

    __slots__ = ("_has_happened", "_listener")

    def __init__(self) -> None:
        self._has_happened = False
        self._listener: Callable[[], None] | None = None

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls back once the client leaves; soon, if it has left already."""
        self._listener = listener
        if self._has_happened:
            asyncio.get_running_loop().call_soon(self.happen)

    def ignore(self) -> None:
        """Nobody is called any more."""
        self._listener = None

    def happen(self) -> None:
        """The client has left."""
        self._has_happened = True
        if self._listener is not None:
            self._listener()


class Pausable(Protocol):
    """Who writes an answer bit by bit."""

    def pause(self) -> None:
        """The client takes no more for now."""
        ...

    def resume(self) -> None:
        """It does again."""
        ...


class Outlet:
    """Writes parts of an answer past ASGI's `send`, which for one token costs more than its text.

    `scope["extensions"][OUTLET]` of every request under BoundedHttp.
    """

    __slots__ = ("_cycle", "_transport", "_writer")

    def __init__(self, cycle: RequestResponseCycle, transport: HeldTransport) -> None:
        self._cycle: Final = cycle
        self._transport: Final = transport
        self._writer: Pausable | None = None

    def listen(self, writer: Pausable) -> None:
        """From here on it is told of pauses, of one that has begun at once."""
        self._writer = writer
        if self._cycle.flow.write_paused:
            writer.pause()

    def write(self, part: bytes) -> None:
        """A part, not empty, between a head without a length and the last part, which are sent.

        Never waits: what is written in spite of a pause is kept in memory.
        """
        if not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    def ignore(self) -> None:
        """Nobody is told any more."""
        self._writer = None

    def pause(self) -> None:
        """The connection is full."""
        if self._writer is not None:
            self._writer.pause()

    def resume(self) -> None:
        """It has room again."""
        if self._writer is not None:
            self._writer.resume()


class BoundedHttp(HttpToolsProtocol):
    """One connection.

    Beyond uvicorn: what is not HTTP is answered with a problem; a head, and what is between two
    bytes of a body or after the last one, has at most 64 KiB; a request arrives within a minute; a
    client that takes no byte for a minute is cut off; what follows a request that closes the
    connection is not answered; and requests sent ahead while one is answered are kept up to 64 KiB,
    without a pause in reading, so that a client that leaves is noticed whatever it sent before.
    What is written goes through the outbox.
    """

    # uvicorn's own, declared again: where this class is compiled, what it declares is at hand.
    transport: asyncio.Transport
    parser: httptools.HttpRequestParser
    loop: asyncio.AbstractEventLoop
    flow: FlowControl
    server_state: ServerState
    timeout_keep_alive: int
    held: HeldTransport  # what `transport` is
    cycle: RequestResponseCycle
    pipeline: deque[tuple[RequestResponseCycle, ASGI3Application]]

    _watch: asyncio.TimerHandle | None = None
    _watch_at = math.inf  # when it fires; it is armed again then, not at every request
    _due = math.inf  # when the request must be in, or the next one must have begun
    _is_arriving = True
    _stall: asyncio.TimerHandle | None = None
    _answering: RequestResponseCycle | None = None
    _departure: Departure
    _outlet: Outlet | None = None
    _is_in_head = True
    _framing_bytes = 0  # received since the last body byte or request: heads, sizes, trailers
    _early = b""

    def __init__(
        self,
        outbox: Outbox,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._outbox: Final = outbox

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.held = self._outbox.hold(transport)
        super().connection_made(cast(asyncio.Transport, self.held))
        self._expect(self.loop.time() + REQUEST_S)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._watch, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        # uvicorn tells the newest request only; with pipelining the one being answered is older
        answering = self._answering
        if answering is not None and not answering.response_complete:
            self.tell_of_departure(answering)

    def tell_of_departure(self, answering: RequestResponseCycle) -> None:
        """The client left while this was being answered."""
        answering.disconnected = True
        answering.message_event.set()
        self._departure.happen()

    def data_received(self, data: bytes) -> None:
        if self._is_answering():
            self._keep_for_later(data)
            return
        self._framing_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        except httptools.HttpParserUpgrade:
            pass  # to nothing that we speak: it is answered as it is
        if self._framing_bytes > MOST_FRAMING_BYTES:
            self.send_400_response(f"a head or trailer has more than {MOST_FRAMING_BYTES} bytes")
        if self.pipeline:
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, as a problem."""
        content = Invalid(msg).problem().model_dump_json(exclude_none=True).encode()
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM_TYPE}\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    def _is_answering(self) -> bool:
        """A request is in and its answer is not out."""
        cycle = self._answering
        if cycle is None or cycle.response_complete:
            return bool(self.pipeline)
        return not cycle.more_body

    def _keep_for_later(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > MOST_EARLY_BYTES:
            self.transport.abort()

    def _begin_message(self) -> None:
        """The first byte of a request is in; from here it has REQUEST_S."""
        self._is_in_head = True
        if not self._is_arriving:
            self._is_arriving = True
            self._due = due = self.loop.time() + REQUEST_S
            if due < self._watch_at:
                self._arm(due)

    def _end_message(self) -> None:
        """The last byte of a request is in."""
        self._framing_bytes = 0
        self._is_arriving = False
        if self._answering is not None and self._answering.response_complete:
            self._expect(self.loop.time() + self.timeout_keep_alive)  # it was refused unread
        else:
            self._due = math.inf

    def _expect(self, due: float) -> None:
        self._due = due
        if due < self._watch_at:
            self._arm(due)

    def _arm(self, due: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch_at = due
        self._watch = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        """Nothing is due, or not yet, or the client is too late."""
        self._watch, self._watch_at = None, math.inf
        if self._due > self.loop.time():
            if self._due < math.inf:
                self._expect(self._due)
        elif self._is_arriving and self._is_answering():
            self._expect(self.loop.time() + REQUEST_S)  # it is kept unread meanwhile
        elif self._is_arriving:
            self.transport.abort()
        else:
            self.timeout_keep_alive_handler()

    # -- parser callbacks ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begin_message()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._end_message()
        super().on_message_complete()

    # -- the answer ----------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self.transport.is_closing():
            return  # the one before it was the last one (RFC 9112, section 9.6)
        self._answering, self._departure = cycle, Departure()
        self._outlet = outlet = Outlet(cycle, self.held)
        extensions = {DEPARTURE: self._departure, OUTLET: outlet}
        cast(dict[str, Any], cycle.scope)["extensions"] = extensions
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """uvicorn's, with one timer a connection instead of one a request."""
        self.server_state.total_requests += 1
        if self._outlet is not None:
            self._outlet.ignore()  # an idle connection keeps no answer in memory
        if self.transport.is_closing():
            self._watch_for_stall()  # closing waits for what is still to be written
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self.loop.call_soon(self._begin_next)  # now, thousands of them would nest
            return
        if not self._is_arriving:
            self._due = due = self.loop.time() + self.timeout_keep_alive
            if due < self._watch_at:
                self._arm(due)
        if self._early:
            self._take_early()

    def _begin_next(self) -> None:
        if self.pipeline and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())
            if self._early:
                self._take_early()

    def _take_early(self) -> None:
        if not self._is_answering():
            early, self._early = self._early, b""
            self.data_received(early)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_for_stall()
        if self._outlet is not None:
            self._outlet.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None and not self.transport.is_closing():
            self._stall.cancel()
            self._stall = None
        if self._outlet is not None:
            self._outlet.resume()

    def timeout_keep_alive_handler(self) -> None:
        self._watch_for_stall()
        super().timeout_keep_alive_handler()

    def _watch_for_stall(self) -> None:
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_S, self.transport.abort)
