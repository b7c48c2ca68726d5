"""uvicorn's HTTP protocol on a socket of our own, with bounds it does not have."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from infra.errors import Invalid
from worker.server import problems

BACKLOG = 4096
# Longer than our gateway keeps an idle connection, so that the end that may retry closes first.
KEEP_ALIVE_S = 120
REQUEST_S = 60.0
STALL_S = 60.0
MOST_HEAD_BYTES = 64 << 10
MOST_EARLY_BYTES = 64 << 10


class BoundedHttp(HttpToolsProtocol):
    """One connection.

    Beyond uvicorn: a head has at most 64 KiB and a request arrives within a minute; a client that
    takes no byte for a minute is cut off; what is not HTTP is answered with a problem; and reading
    goes on while a request is answered, so that a client that leaves is always noticed.
    """

    _arrival: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _answering: RequestResponseCycle | None = None
    _is_in_head = True
    _head_bytes = 0
    _early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._arrival, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        # uvicorn tells the newest request only; with pipelining the one being answered is older.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_answering():
            return self._keep_for_later(data)
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response(f"the head has more than {MOST_HEAD_BYTES} bytes")
        if self.pipeline:
            self.flow.resume_reading()
        return None

    def _is_answering(self) -> bool:
        cycle = self._answering
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _keep_for_later(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > MOST_EARLY_BYTES:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self.transport.write(problems.raw_response(Invalid(msg)))
        self.transport.close()

    def _expect_request(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(REQUEST_S, self.transport.abort)

    # Parser callbacks ---------------------------------------------------------------------

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

    # The answer ---------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_for_stall()  # close() waits for what is still to be written
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

    def timeout_keep_alive_handler(self) -> None:
        self._watch_for_stall()
        super().timeout_keep_alive_handler()

    def _watch_for_stall(self) -> None:
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_S, self.transport.abort)


class Listener:
    """Accepts connections and keeps track of them."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._state = ServerState()
        self._config = Config(
            app,
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._state.connections)

    async def bind(self, host: str, port: int) -> int:
        """Accepts from now on; returns the port, chosen by the system where 0 was given.

        A socket of our own for an address, not a name: asyncio's look-up of one costs a cold start
        3 ms for its first thread.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, sock=listening, backlog=BACKLOG)
        bound: int = listening.getsockname()[1]
        return bound

    def stop_accepting(self) -> None:
        """Nobody new; idle connections end, the others end after what they are doing."""
        if self._server is not None:
            self._server.close()
        for connection in self._open():
            connection.shutdown()

    def abort(self) -> None:
        """Cuts every connection."""
        self.stop_accepting()
        for connection in self._open():
            connection.transport.abort()

    async def close(self) -> None:
        """Cuts every connection and waits for the tasks that served them."""
        self.abort()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)

    def _open(self) -> list[BoundedHttp]:
        return [one for one in self._state.connections if isinstance(one, BoundedHttp)]

    def _accept(self) -> BoundedHttp:
        return BoundedHttp(self._config, self._state, {})
