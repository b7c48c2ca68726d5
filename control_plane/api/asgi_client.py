"""The client of one hot request as ASGI shows it: what it gets, and whether it is still there."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import TracebackType
from typing import Any

from control_plane.activator.call import Header
from infra.bounded_http import DEPARTURE, Departure

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class AsgiDownstream:
    """A Downstream over ASGI's `send`, which waits while the client is too slow to take more."""

    __slots__ = ("_send", "is_finished", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.is_finished = False

    @property
    def has_started(self) -> bool:
        return self.status != 0

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        self.status = status
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        self.is_finished = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


class WhileConnected:
    """Cancels the block when the client leaves; the block then ends without an error.

    `has_left` tells afterwards. The request's body must have been read.
    """

    __slots__ = ("_client", "_departure", "_task", "has_left")

    def __init__(self, departure: "Departure | Watch", client: AsgiDownstream) -> None:
        self._departure = departure
        self._client = client
        self._task: asyncio.Task[Any] | None = None
        self.has_left = False

    def __enter__(self) -> "WhileConnected":
        self._task = asyncio.current_task()
        self._departure.listen(self._leave)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._departure.ignore()
        if not self.has_left:
            return False
        assert self._task is not None
        is_ours = self._task.uncancel() == 0
        return is_ours and (kind is None or issubclass(kind, asyncio.CancelledError))

    def _leave(self) -> None:
        assert self._task is not None
        if not self._client.is_finished and not self.has_left:
            self.has_left = True
            self._task.cancel()


class Watch:
    """A Departure under any ASGI server: waits for what `receive` gives after the body."""

    __slots__ = ("_receive", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def listen(self, listener: Callable[[], None]) -> None:
        """See Departure.listen."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch(listener))

    def ignore(self) -> None:
        """See Departure.ignore."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self, listener: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        listener()


def departure_of(scope: Scope, receive: Receive) -> Departure | Watch:
    """How this request's server tells that its client has left."""
    departure = scope.get("extensions", {}).get(DEPARTURE)
    return departure if isinstance(departure, Departure) else Watch(receive)
