"""The replica client for real: a lean pool of keep-alive connections, a parser and nothing else."""

import asyncio
from typing import Final

from control_plane.activator.connection import Connection
from control_plane.activator.replica_client import (
    Reader,
    ReplicaGone,
    ReplicaRequest,
    ReplicaUnreachable,
    Sending,
)
from control_plane.fleet.replica import Endpoint
from infra.contracts.base import ReplicaId
from infra.outbox import Outbox
from infra.supervise import TaskSet


class HttpReplicaClient:
    """Speaks HTTP/1.1 to replicas; the permits bound how many connections there are.

    A connection that was kept may have been closed by the replica at the moment it is used again:
    if it ends without one byte of an answer, the request goes out once more on another one.
    What a replica wrote before it ended may still be on its way when its end is known: it has
    `last_words_s` to arrive.
    """

    def __init__(self, *, connect_timeout_s: float = 5.0, last_words_s: float = 1.0) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._last_words_s = last_words_s
        self._peers: dict[ReplicaId, _Peer] = {}
        self._connecting = TaskSet()
        self._outbox = Outbox()

    def send(self, endpoint: Endpoint, request: ReplicaRequest, reader: Reader) -> Sending:
        peer = self._peers.get(endpoint.replica_id)
        if peer is None:
            peer = self._peers[endpoint.replica_id] = _Peer(endpoint)
        sending = _HttpSending(self, peer, (peer.head(request), request.body), reader)
        sending.begin()
        return sending

    def connect(self, sending: "_HttpSending", peer: "_Peer") -> None:
        """Opens a connection for it."""
        self._connecting.start(self._connect(sending, peer), name="connection to a replica")

    def forget(self, replica_id: ReplicaId) -> None:
        peer = self._peers.pop(replica_id, None)
        if peer is None:
            return
        peer.forget()
        if peer.connections:
            loop = asyncio.get_running_loop()
            loop.call_later(self._last_words_s, peer.abort, "the replica is gone")

    async def close(self) -> None:
        await self._connecting.close()
        for peer in self._peers.values():
            peer.forget()
            peer.abort("the platform is stopping")
        self._peers.clear()
        await asyncio.sleep(0)  # lets the transports close their sockets

    async def _connect(self, sending: "_HttpSending", peer: "_Peer") -> None:
        endpoint = peer.endpoint
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(peer, self._outbox), endpoint.host, endpoint.port
                )
        except TimeoutError:
            sending.unreachable(f"no connection within {self._connect_timeout_s:g} s")
            return
        except OSError as error:
            sending.unreachable(f"no connection: {error.strerror or error}")
            return
        peer.connections.add(connection)
        if peer.is_forgotten:
            connection.abort("the replica is gone")
        sending.connected(connection)


class _Peer:
    """What is kept for one replica; `idle` connections are the least recently used first."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint: Final = endpoint
        self.connections: set[Connection] = set()
        self.idle: dict[Connection, None] = {}
        self.is_forgotten = False
        self._prefixes: dict[str, str] = {}
        self._timeout_s, self._timeout = 0.0, ""  # what was written last

    def head(self, request: ReplicaRequest) -> bytes:
        prefix = self._prefixes.get(request.path)
        if prefix is None:
            prefix = self._prefixes[request.path] = (
                f"POST {request.path} HTTP/1.1\r\n"
                f"host: {self.endpoint.host}:{self.endpoint.port}\r\n"
                f"authorization: Bearer {self.endpoint.token}\r\n"
                "content-type: application/json\r\nfirstlight-request-id: "
            )
        if request.timeout_s != self._timeout_s:
            self._timeout_s, self._timeout = request.timeout_s, f"{request.timeout_s:.3f}"
        return (
            f"{prefix}{request.request_id}\r\nfirstlight-tenant: {request.tenant}\r\n"
            f"firstlight-timeout: {self._timeout}\r\ncontent-length: {len(request.body)}\r\n\r\n"
        ).encode("ascii")

    def freed(self, connection: Connection) -> None:
        if self.is_forgotten:
            connection.abort("the replica is gone")
        else:
            self.idle[connection] = None

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.idle.pop(connection, None)

    def forget(self) -> None:
        self.is_forgotten = True
        for connection in tuple(self.idle):
            connection.abort("the replica is gone")
        self.idle.clear()

    def abort(self, why: str) -> None:
        for connection in tuple(self.connections):
            connection.abort(why)


class _HttpSending:
    """One exchange, on whichever connection carries it."""

    __slots__ = (
        "_client",
        "_connection",
        "_is_paused",
        "_peer",
        "_reader",
        "_request",
        "_was_kept",
    )

    def __init__(
        self, client: HttpReplicaClient, peer: _Peer, request: tuple[bytes, bytes], reader: Reader
    ) -> None:
        self._client = client
        self._peer = peer
        self._request = request
        self._reader: Reader | None = reader
        self._connection: Connection | None = None
        self._was_kept = False
        self._is_paused = False

    def begin(self) -> None:
        """Takes a kept connection, or a new one."""
        assert self._reader is not None, "it was not aborted"
        idle = self._peer.idle
        while idle:
            kept, _ = idle.popitem()  # the one that was used last
            if kept.begin(self, self._request, self._reader):
                self._was_kept = True
                self._connection = kept
                return
        self._client.connect(self, self._peer)

    def connected(self, connection: Connection) -> None:
        """There is a new connection."""
        if self._reader is None:  # its caller has left meanwhile
            self._peer.freed(connection)
            return
        self._was_kept = False
        if not connection.begin(self, self._request, self._reader):
            self._peer.closed(connection)  # which may have been before it was the peer's
            self._fail(ReplicaGone("its connection was closed at once"))
            return
        self._connection = connection
        if self._is_paused:
            connection.pause(self)

    def unreachable(self, why: str) -> None:
        """There is no connection; a kept one may have carried the request before it broke."""
        self._fail(ReplicaGone(why) if self._was_kept else ReplicaUnreachable(why))

    def _fail(self, gone: ReplicaGone) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.gone(gone)

    # What the caller may do

    def pause(self) -> None:
        self._is_paused = True
        if self._connection is not None:
            self._connection.pause(self)

    def resume(self) -> None:
        self._is_paused = False
        if self._connection is not None:
            self._connection.resume(self)

    def abort(self) -> None:
        self._reader = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon(self)

    # What the connection tells

    def lost(self, why: str, *, has_answered: bool) -> None:
        self._connection = None
        if self._was_kept and not has_answered and not self._peer.is_forgotten:
            self.begin()
        else:
            self._fail(ReplicaGone(why))
