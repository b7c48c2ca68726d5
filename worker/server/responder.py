"""One HTTP response as ASGI messages: whole JSON, a stream of events, or a problem."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from infra.bounded_http import Pausable
from infra.errors import PlatformError
from worker.server import problems

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

_EVENTS_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Outlet(Protocol):
    """Where the parts of a stream go; see infra.bounded_http.Outlet."""

    def listen(self, writer: Pausable) -> None: ...
    def write(self, part: bytes) -> None: ...


class Responder:
    """Sends one response; `send` waits while the client is too slow to take more."""

    def __init__(self, send: Send, path: str, outlet: Outlet) -> None:
        self._send = send
        self._path = path
        self._outlet = outlet
        self._has_head = False

    async def whole(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: tuple[Header, ...] = (),
    ) -> None:
        """A complete response."""
        length = (b"content-length", b"%d" % len(body))
        await self._head(status, ((b"content-type", content_type), length, *headers))
        await self.finish(body)

    async def begin_events(self, writer: Pausable, *headers: Header) -> None:
        """The head of a stream, whose writer is told when it has to pause."""
        await self._head(200, (*_EVENTS_HEADERS, *headers))
        self._outlet.listen(writer)

    def part(self, events: bytes) -> None:
        """Some events of a stream, in one write."""
        if events:
            self._outlet.write(events)

    async def finish(self, body: bytes) -> None:
        """The rest of the response."""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def problem(self, error: PlatformError, headers: tuple[Header, ...] = ()) -> None:
        """The error as a response, or as the last event where a stream has begun."""
        if self._has_head:
            await self.finish(problems.event(error))
            return
        own = tuple((name.encode(), value.encode()) for name, value in error.headers().items())
        await self.whole(
            problems.body(error, path=self._path),
            status=error.status.value,
            content_type=problems.CONTENT_TYPE,
            headers=(*own, *headers),
        )

    async def _head(self, status: int, headers: tuple[Header, ...]) -> None:
        self._has_head = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
