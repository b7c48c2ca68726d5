"""Replicas in memory: a ReplicaClient whose replicas do what a test or a simulation scripts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from control_plane.activator.replica_client import (
    Headers,
    ReplicaGone,
    ReplicaRequest,
    ReplicaResponse,
)
from control_plane.fleet.replica import Endpoint
from infra.contracts.base import ReplicaId, RequestId
from infra.supervise import TaskSet

MAX_UNREAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that reached a replica."""

    replica_id: ReplicaId
    request: ReplicaRequest


class Wire:
    """The replica's side of one exchange; its script writes here."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = ()
        self._chunks: list[bytes] = []
        self._unread_bytes = 0
        self._is_whole = False
        self._failure: str | None = None
        self._changed = asyncio.Event()

    @property
    def is_broken(self) -> bool:
        return self._failure is not None

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answers with a status and headers."""
        self.status, self.headers = status, tuple(headers)
        self._change()

    async def write(self, data: bytes) -> None:
        """Adds to the body; waits while the reader is too far behind."""
        self._chunks.append(data)
        self._unread_bytes += len(data)
        self._change()
        while self._unread_bytes > MAX_UNREAD_BYTES:
            await self._wait()

    def end(self) -> None:
        """The body is whole, unless the connection broke before."""
        self._is_whole = not self.is_broken
        self._change()

    def break_off(self, why: str = "it closed the connection") -> None:
        """The connection breaks."""
        self._failure = self._failure or why
        self._change()

    async def until_head(self) -> None:
        while self.status == 0:
            self._raise_if_broken()
            await self._wait()

    async def read(self) -> bytes:
        while not self._chunks:
            if self._is_whole:
                return b""
            self._raise_if_broken()
            await self._wait()
        data = b"".join(self._chunks)
        self._chunks = []
        self._unread_bytes = 0
        self._change()
        return data

    def _raise_if_broken(self) -> None:
        if self._failure is not None:
            raise ReplicaGone(self._failure)

    def _change(self) -> None:
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


Script = Callable[[ReplicaRequest, Wire], Awaitable[None]]


class MemoryReplicaClient:
    """Carries requests to scripts, and remembers what it carried.

    `sent` are the requests in the order they reached a replica, `aborted` those whose caller left
    before the answer was whole. A replica without a script cannot be reached.
    """

    def __init__(self) -> None:
        self.scripts: dict[ReplicaId, Script] = {}
        self.sent: list[Sent] = []
        self.aborted: list[RequestId] = []
        self.forgotten: list[ReplicaId] = []
        self._running: dict[ReplicaId, set[_MemoryResponse]] = {}
        self._tasks = TaskSet()

    @property
    def running(self) -> int:
        """Exchanges that have not been closed."""
        return sum(map(len, self._running.values()))

    async def send(self, endpoint: Endpoint, request: ReplicaRequest) -> ReplicaResponse:
        script = self.scripts.get(endpoint.replica_id)
        if script is None:
            raise ReplicaGone("no connection: connection refused")
        self.sent.append(Sent(endpoint.replica_id, request))
        response = _MemoryResponse(self, endpoint.replica_id, request.request_id)
        self._running.setdefault(endpoint.replica_id, set()).add(response)
        response.task = self._tasks.start(
            response.run(script, request), name=f"replica {endpoint.replica_id}"
        )
        try:
            await response.wire.until_head()
        except BaseException:
            response.close()
            raise
        return response

    def kill(self, replica_id: ReplicaId) -> None:
        """The replica's process dies: nothing reaches it, and all its connections break."""
        self.scripts.pop(replica_id, None)
        for response in tuple(self._running.get(replica_id, ())):
            response.wire.break_off()

    def forget(self, replica_id: ReplicaId) -> None:
        self.forgotten.append(replica_id)
        for response in tuple(self._running.get(replica_id, ())):
            response.wire.break_off("the replica is gone")

    async def close(self) -> None:
        await self._tasks.close()

    def closed(self, response: "_MemoryResponse") -> None:
        """An exchange is over."""
        self._running[response.replica_id].discard(response)
        if not response.is_whole and not response.wire.is_broken:
            self.aborted.append(response.request_id)


class _MemoryResponse:
    def __init__(
        self, client: MemoryReplicaClient, replica_id: ReplicaId, request_id: RequestId
    ) -> None:
        self.replica_id = replica_id
        self.request_id = request_id
        self.wire = Wire()
        self.is_whole = False
        self.task: asyncio.Task[None] | None = None
        self._client = client
        self._is_closed = False

    @property
    def status(self) -> int:
        return self.wire.status

    @property
    def headers(self) -> Headers:
        return self.wire.headers

    async def run(self, script: Script, request: ReplicaRequest) -> None:
        await script(request, self.wire)
        self.wire.end()

    async def read(self) -> bytes:
        data = await self.wire.read()
        self.is_whole = self.is_whole or not data
        return data

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._client.closed(self)
        if self.task is not None:
            self.task.cancel()
