"""One HTTP response as ASGI messages: whole JSON, a stream of events, or a problem."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from infra.errors import PlatformError
from worker.server import problems

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

_EVENTS_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Responder:
    """Sends one response; `send` waits while the client is too slow to take more."""

    def __init__(self, send: Send, path: str) -> None:
        self._send = send
        self._path = path
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

    async def begin_events(self, *headers: Header) -> None:
        """The head of a stream."""
        await self._head(200, (*_EVENTS_HEADERS, *headers))

    async def part(self, events: bytes) -> None:
        """Some events of a stream, in one write."""
        if events:
            await self._send({"type": "http.response.body", "body": events, "more_body": True})

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
