"""Replicas in memory: a ReplicaClient whose replicas do what a test or a simulation scripts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from control_plane.activator.replica_client import (
    Reader,
    ReplicaGone,
    ReplicaRequest,
    ReplicaUnreachable,
    Sending,
)
from control_plane.fleet.replica import Endpoint
from infra.contracts.base import ReplicaId, RequestId
from infra.supervise import TaskSet


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that reached a replica."""

    replica_id: ReplicaId
    request: ReplicaRequest


class Wire:
    """The replica's side of one exchange; its script writes here."""

    def __init__(self, reader: Reader) -> None:
        self.status = 0
        self.is_whole = False
        self._reader: Reader | None = reader
        self._has_left = False
        self._failure: ReplicaGone | None = None
        self._goes_on = asyncio.Event()
        self._goes_on.set()

    @property
    def is_broken(self) -> bool:
        return self._failure is not None

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answers with a status and headers."""
        self.status = status
        if self._reader is not None:
            self._reader.head(status, tuple(headers))

    async def write(self, data: bytes) -> None:
        """Adds to the body; waits while the reader takes nothing."""
        await asyncio.sleep(0)
        await self._goes_on.wait()
        if self._reader is not None and data:
            self._reader.body(data)

    def end(self) -> None:
        """The body is whole, unless the connection broke before."""
        self.is_whole = not self.is_broken
        reader, self._reader = self._reader, None
        if reader is not None and self.status == 0:
            reader.gone(ReplicaGone("it closed the connection without an answer"))
        elif reader is not None:
            reader.end()

    def break_off(self, why: str = "it closed the connection") -> None:
        """The connection breaks; its reader hears of it soon."""
        self._break(ReplicaGone(why))

    def refuse(self) -> None:
        """There is no connection; its reader hears of it soon."""
        self._break(ReplicaUnreachable("no connection: connection refused"))

    def hold(self) -> None:
        """The reader takes nothing for now."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """The reader takes more."""
        self._goes_on.set()

    def cut(self) -> None:
        """The reader has left."""
        self._has_left = True
        self._reader = None

    def _break(self, gone: ReplicaGone) -> None:
        self._failure = self._failure or gone
        reader, self._reader = self._reader, None
        if reader is not None:
            asyncio.get_running_loop().call_soon(self._tell, reader, self._failure)

    def _tell(self, reader: Reader, gone: ReplicaGone) -> None:
        if not self._has_left:
            reader.gone(gone)


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
        self._running: dict[ReplicaId, set[_MemorySending]] = {}
        self._tasks = TaskSet()

    @property
    def running(self) -> int:
        """Exchanges that have not been closed."""
        return sum(map(len, self._running.values()))

    def send(self, endpoint: Endpoint, request: ReplicaRequest, reader: Reader) -> Sending:
        script = self.scripts.get(endpoint.replica_id, _is_not_there)
        if script is not _is_not_there:
            self.sent.append(Sent(endpoint.replica_id, request))
        sending = _MemorySending(self, endpoint.replica_id, request.request_id, Wire(reader))
        self._running.setdefault(endpoint.replica_id, set()).add(sending)
        sending.task = self._tasks.start(
            sending.run(script, request), name=f"replica {endpoint.replica_id}"
        )
        return sending

    def kill(self, replica_id: ReplicaId) -> None:
        """The replica's process dies: nothing reaches it, and all its connections break."""
        self.scripts.pop(replica_id, None)
        for sending in tuple(self._running.get(replica_id, ())):
            sending.wire.break_off()

    def forget(self, replica_id: ReplicaId) -> None:
        self.forgotten.append(replica_id)
        for sending in tuple(self._running.get(replica_id, ())):
            sending.wire.break_off("the replica is gone")

    async def close(self) -> None:
        await self._tasks.close()

    def closed(self, sending: "_MemorySending") -> None:
        """An exchange is over."""
        self._running[sending.replica_id].discard(sending)
        if not sending.wire.is_whole and not sending.wire.is_broken:
            self.aborted.append(sending.request_id)


class _MemorySending:
    def __init__(
        self, client: MemoryReplicaClient, replica_id: ReplicaId, request_id: RequestId, wire: Wire
    ) -> None:
        self.replica_id = replica_id
        self.request_id = request_id
        self.wire = wire
        self.task: asyncio.Task[None] | None = None
        self._client = client
        self._is_closed = False

    async def run(self, script: Script, request: ReplicaRequest) -> None:
        await script(request, self.wire)
        self.wire.end()
        self._close()

    def pause(self) -> None:
        self.wire.hold()

    def resume(self) -> None:
        self.wire.go_on()

    def abort(self) -> None:
        self.wire.cut()
        self._close()
        if self.task is not None:
            self.task.cancel()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._client.closed(self)


async def _is_not_there(request: ReplicaRequest, wire: Wire) -> None:
    wire.refuse()
