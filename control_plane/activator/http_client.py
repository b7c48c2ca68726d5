"""The replica client for real: a lean pool of keep-alive connections, a parser and nothing else."""

import asyncio
from dataclasses import dataclass, field

from control_plane.activator.connection import Connection
from control_plane.activator.replica_client import (
    Headers,
    ReplicaGone,
    ReplicaRequest,
    ReplicaResponse,
)
from control_plane.fleet.replica import Endpoint
from infra.contracts.base import ReplicaId


class HttpReplicaClient:
    """Speaks HTTP/1.1 to replicas; the permits bound how many connections there are.

    A connection that was kept may have been closed by the replica at the moment it is used again:
    if it ends without one byte of an answer, the request goes out once more on a new connection.
    What a replica wrote before it ended may still be on its way when its end is known: it has
    `last_words_s` to arrive.
    """

    def __init__(self, *, connect_timeout_s: float = 5.0, last_words_s: float = 1.0) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._last_words_s = last_words_s
        self._peers: dict[ReplicaId, _Peer] = {}

    async def send(self, endpoint: Endpoint, request: ReplicaRequest) -> ReplicaResponse:
        peer = self._peers.get(endpoint.replica_id)
        if peer is None:
            peer = self._peers[endpoint.replica_id] = _Peer(endpoint)
        head = peer.head(request)
        while (kept := peer.kept()) is not None:
            try:
                return await _exchange(peer, kept, head, request.body)
            except ReplicaGone:
                if kept.has_answered:
                    raise
        return await _exchange(peer, await self._connect(peer), head, request.body)

    def forget(self, replica_id: ReplicaId) -> None:
        peer = self._peers.pop(replica_id, None)
        if peer is None:
            return
        peer.drop_idle()
        if peer.connections:
            loop = asyncio.get_running_loop()
            loop.call_later(self._last_words_s, peer.abort, "the replica is gone")

    async def close(self) -> None:
        for peer in self._peers.values():
            peer.abort("the platform is stopping")
        self._peers.clear()
        await asyncio.sleep(0)  # lets the transports close their sockets

    async def _connect(self, peer: "_Peer") -> Connection:
        endpoint = peer.endpoint
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(peer.closed), endpoint.host, endpoint.port
                )
        except TimeoutError:
            raise ReplicaGone(f"no connection within {self._connect_timeout_s:g} s") from None
        except OSError as error:
            raise ReplicaGone(f"no connection: {error.strerror or error}") from error
        peer.connections.add(connection)
        return connection


@dataclass(eq=False)
class _Peer:
    """What is kept for one replica."""

    endpoint: Endpoint
    connections: set[Connection] = field(default_factory=set)
    idle: dict[Connection, None] = field(default_factory=dict)  # least recently used first
    prefixes: dict[str, bytes] = field(default_factory=dict)

    def kept(self) -> Connection | None:
        """The idle connection that was used last."""
        while self.idle:
            connection, _ = self.idle.popitem()
            if connection.is_idle:
                return connection
        return None

    def head(self, request: ReplicaRequest) -> bytes:
        prefix = self.prefixes.get(request.path)
        if prefix is None:
            prefix = self.prefixes[request.path] = (
                f"POST {request.path} HTTP/1.1\r\n"
                f"host: {self.endpoint.host}:{self.endpoint.port}\r\n"
                f"authorization: Bearer {self.endpoint.token}\r\n"
                "content-type: application/json\r\n"
            ).encode("ascii")
        return (
            b"%sfirstlight-request-id: %s\r\nfirstlight-tenant: %s\r\n"
            b"firstlight-timeout: %.3f\r\ncontent-length: %d\r\n\r\n"
        ) % (
            prefix,
            request.request_id.encode("ascii"),
            request.tenant.encode("ascii"),
            request.timeout_s,
            len(request.body),
        )

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.idle.pop(connection, None)

    def drop_idle(self) -> None:
        for connection in tuple(self.idle):
            connection.abort("the replica is gone")
        self.idle.clear()

    def abort(self, why: str) -> None:
        self.idle.clear()
        for connection in tuple(self.connections):
            connection.abort(why)


class _HttpResponse:
    """The answer on one connection; gives the connection back when it is closed."""

    __slots__ = ("_connection", "_is_closed", "_peer", "headers", "status")

    def __init__(self, connection: Connection, peer: _Peer) -> None:
        self._connection = connection
        self._peer = peer
        self._is_closed = False
        self.status = connection.status
        self.headers: Headers = connection.headers

    async def read(self) -> bytes:
        return await self._connection.read()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._connection.finish()
        if self._connection.is_idle:
            self._peer.idle[self._connection] = None  # aborted with its peer if that is over


async def _exchange(
    peer: _Peer, connection: Connection, head: bytes, body: bytes
) -> ReplicaResponse:
    try:
        await connection.exchange(head, body)
    except BaseException:
        connection.abort("the exchange was given up")
        raise
    return _HttpResponse(connection, peer)
