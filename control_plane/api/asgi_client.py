"""The client of one hot request as ASGI shows it: what it gets, and whether it is still there."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import TracebackType
from typing import Any

from control_plane.activator.call import Header

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

    `has_left` tells afterwards. The request's body must have been read: what `receive` gives next
    is the news that the client is gone.
    """

    __slots__ = ("_client", "_receive", "_task", "_watcher", "has_left")

    def __init__(self, receive: Receive, client: AsgiDownstream) -> None:
        self._receive = receive
        self._client = client
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.has_left = False

    async def __aenter__(self) -> "WhileConnected":
        self._task = asyncio.current_task()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._watcher is not None and self._task is not None
        self._watcher.cancel()
        if not self.has_left:
            return False
        is_ours = self._task.uncancel() == 0
        return is_ours and (kind is None or issubclass(kind, asyncio.CancelledError))

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._client.is_finished:
            self.has_left = True
            assert self._task is not None
            self._task.cancel()
