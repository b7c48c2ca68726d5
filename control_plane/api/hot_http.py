"""One client connection: hot requests are answered here, before there is an ASGI app."""

from typing import Any, Final

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from control_plane.api.hot_request import Desk, HotRequest
from control_plane.api.targets import target_of
from infra.bounded_http import BoundedHttp
from infra.outbox import Outbox


class DateLine:
    """The server's own header lines, built once for each list of them: every second."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] | None = None
        self.lines = b""

    def build(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.headers = headers
        self.lines = b"".join(b"%b: %b\r\n" % header for header in headers)


class HotHttp(BoundedHttp):
    """BoundedHttp whose hot requests skip the ASGI stack.

    A hot request takes the place of uvicorn's cycle, so that turns, keep-alive and shutdown are
    uvicorn's for both, and requests to both may follow one another on a connection.
    """

    def __init__(
        self,
        desk: Desk,
        dated: DateLine,
        outbox: Outbox,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(outbox, config, server_state, app_state)
        self._desk: Final = desk
        self._dated: Final = dated
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self.is_stalled = False

    @property
    def date(self) -> bytes:
        """See Connection."""
        dated, headers = self._dated, self.server_state.default_headers
        if dated.headers is not headers:
            dated.build(headers)
        return dated.lines

    # -- parser callbacks ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begin_message()
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # a trailer is no header
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        fields, self._fields = self._fields, []
        found = target_of(self._url)
        if found is None:
            self._be_uvicorn(fields)
            return
        self._is_in_head = False
        path, target = found
        headers = dict(fields)
        keep_alive: bool = self.parser.should_keep_alive()
        # HTTP/1.0 keeps alive only who asks for it; to ask for the version makes a string.
        is_http_1_1 = (
            keep_alive and b"connection" not in headers
        ) or self.parser.get_http_version() == "1.1"
        request = HotRequest(
            self._desk,
            self,
            target,
            headers,
            self.parser.get_method(),
            path,
            is_http_1_1,
            is_http_1_1 and keep_alive,
        )
        before: RequestResponseCycle | None = self.cycle
        self.cycle = request  # type: ignore[assignment]  # it does what uvicorn asks of one
        if before is not None and not before.response_complete:
            self.pipeline.appendleft((self.cycle, self.app))
        elif not self.transport.is_closing():  # else the one before it was the last one
            self._answering = self.cycle
            request.begin()

    def on_body(self, body: bytes) -> None:
        request: object = self.cycle
        if isinstance(request, HotRequest):
            self._framing_bytes = 0
            request.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        request: object = self.cycle
        if isinstance(request, HotRequest):
            self._end_message()
            request.end()
        else:
            super().on_message_complete()

    def _be_uvicorn(self, fields: list[tuple[bytes, bytes]]) -> None:
        super().on_message_begin()
        self.url = self._url
        for name, value in fields:
            super().on_header(name, value)
        super().on_headers_complete()

    # -- the answer ----------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        request: object = cycle
        if isinstance(request, HotRequest):
            self._answering = cycle
            request.begin()
        else:
            super()._start_asgi_task(cycle, app)

    def tell_of_departure(self, answering: RequestResponseCycle) -> None:
        request: object = answering
        if isinstance(request, HotRequest):
            request.leave()
        else:
            super().tell_of_departure(answering)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.pipeline.clear()
        self.cycle = self._answering = None  # type: ignore[assignment]  # they know us

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_stalled = True
        request: object = self._answering
        if isinstance(request, HotRequest) and request.exchange is not None:
            request.exchange.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.is_stalled = False
        request: object = self._answering
        if isinstance(request, HotRequest) and request.exchange is not None:
            request.exchange.resume()
