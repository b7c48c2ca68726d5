"""Whether and how a node shares chunks with others: the port, and its two adapters."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from infra.registry.connections import Connections
from snapshotter.blob.blob import Blob
from snapshotter.blob.peers.directory import Directory
from snapshotter.blob.peers.neighbourhood import Neighbourhood
from snapshotter.blob.peers.server import PeerServer
from snapshotter.blob.peers.shared_blobs import SharedBlobs
from snapshotter.blob.peers.source import PeerSource
from snapshotter.blob.peers.wire import bearer_of
from snapshotter.blob.source import ChunkSource
from snapshotter.blob.store import ChunkStore
from snapshotter.blob.stored_blob import BlobRef

_CONNECT_S = 0.5


@dataclass(frozen=True, slots=True)
class PeerTerms:
    """`address` is what other nodes are told, as `host:port`; by default what is listened on.
    `patience_s`: how long a peer may be silent that brings a chunk for us; `first_word_s`: how
    long the first read of a blob may wait to hear who shares it.
    """

    node_id: str
    host: str
    port: int
    token: str = field(repr=False)
    address: str | None = None
    upload_bytes_per_s: float | None = None
    patience_s: float = 3.0
    first_word_s: float = 0.1


class Sharing(Protocol):
    """Where else than at its origin a blob may be found."""

    def before(self, ref: BlobRef, origin: ChunkSource) -> Sequence[ChunkSource]:
        """The sources of a blob, best first."""
        ...

    def opened(self, blob: Blob) -> None:
        """The blob can be fetched here from now on."""
        ...

    def hear(self) -> None:
        """Who else shares what is open here is asked soon; nobody waits for it."""
        ...

    def closed(self, digest: str) -> None:
        """The blob cannot be fetched here any more; what is in the store stays shared."""
        ...


class Alone:
    """A node that shares nothing."""

    def before(self, ref: BlobRef, origin: ChunkSource) -> Sequence[ChunkSource]:
        return (origin,)

    def opened(self, blob: Blob) -> None: ...

    def hear(self) -> None: ...

    def closed(self, digest: str) -> None: ...


class Peering:
    """Owns the server, the neighbourhood and the connections to peers; closed once."""

    def __init__(self, store: ChunkStore, directory: Directory, terms: PeerTerms) -> None:
        """Raises OSError where it cannot listen."""
        self._bearer = bearer_of(terms.token)
        self._first_word_s = terms.first_word_s
        self._shared = SharedBlobs(store)
        self._connections = Connections(
            stall_s=terms.patience_s, connect_s=_CONNECT_S, is_plain=lambda host: True
        )
        self.server = PeerServer(
            self._shared,
            host=terms.host,
            port=terms.port,
            bearer=self._bearer,
            fetch_s=0.9 * terms.patience_s,
            upload_bytes_per_s=terms.upload_bytes_per_s,
        )
        address = terms.address or f"{terms.host}:{self.server.port}"
        self._neighbourhood = Neighbourhood(terms.node_id, address, directory, self._shared)
        self.server.neighbourhood = self._neighbourhood

    def before(self, ref: BlobRef, origin: ChunkSource) -> Sequence[ChunkSource]:
        peers = PeerSource(ref, self._neighbourhood, self._connections, bearer=self._bearer)
        return (peers, origin)

    def opened(self, blob: Blob) -> None:
        """Who else shares the blob is known soon."""
        self._shared.add(blob)
        self._neighbourhood.refresh(within_s=self._first_word_s)

    def hear(self) -> None:
        self._neighbourhood.nudge()

    def closed(self, digest: str) -> None:
        self._shared.remove(digest)

    def close(self) -> None:
        """Leaves the directory, then ends every upload."""
        with ExitStack() as last:
            last.callback(self._connections.close)
            last.callback(self.server.close)
            last.callback(self._neighbourhood.close)
