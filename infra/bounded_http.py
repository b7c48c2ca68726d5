"""uvicorn's HTTP protocol with the bounds that a server needs which strangers talk to."""

import asyncio

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from infra.errors import Invalid, PlatformError

REQUEST_S = 60.0
STALL_S = 60.0
MOST_HEAD_BYTES = 64 << 10
MOST_EARLY_BYTES = 64 << 10


class BoundedHttp(HttpToolsProtocol):
    """One connection.

    Beyond uvicorn: what is not HTTP is answered with a problem; a head has at most 64 KiB; a
    request arrives within a minute; a client that takes no byte for a minute is cut off; and
    requests sent ahead while one is answered are kept up to 64 KiB, without a pause in reading, so
    that a client that leaves is noticed whatever it sent before. A subclass says what a problem
    looks like.
    """

    _arrival: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _answering: RequestResponseCycle | None = None
    _head_bytes = 0
    _is_in_head = True
    _early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._arrival, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        # uvicorn tells the newest request only; with pipelining the one being answered is older
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_answering():
            self._keep_for_later(data)
            return
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response(f"the head has more than {MOST_HEAD_BYTES} bytes")
        if self.pipeline:
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, as a problem."""
        self.transport.write(self.raw_problem(Invalid(msg)))
        self.transport.close()

    def raw_problem(self, error: PlatformError) -> bytes:
        """A whole HTTP/1.1 response, for a connection that never made a request we could read."""
        raise NotImplementedError

    def _is_answering(self) -> bool:
        """A request is in and its answer is not out."""
        cycle = self._answering
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _keep_for_later(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > MOST_EARLY_BYTES:
            self.transport.abort()

    def _expect_request(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(REQUEST_S, self.transport.abort)

    # -- parser callbacks ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._expect_request()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
        super().on_message_complete()

    # -- the answer ----------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_for_stall()  # closing waits for what is still to be written
        elif self._early and not self.pipeline:
            early, self._early = self._early, b""
            self.data_received(early)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_for_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None and not self.transport.is_closing():
            self._stall.cancel()
            self._stall = None

    def _watch_for_stall(self) -> None:
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_S, self.transport.abort)
