"""What a node needs to share chunks with others, put together."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from snapshotter.blob.blob import Blob
from snapshotter.blob.peers.directory import Directory
from snapshotter.blob.peers.neighbourhood import Neighbourhood
from snapshotter.blob.peers.server import PeerServer
from snapshotter.blob.peers.shared_blobs import SharedBlobs
from snapshotter.blob.peers.source import PeerSource
from snapshotter.blob.source import ChunkSource
from snapshotter.blob.store import ChunkStore
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.registry.connections import Connections

_FIRST_WORD_S = 0.1  # how long the first read of a blob may wait to hear who shares it
_CONNECT_S = 0.5


class Peering:
    """Owns the server, the neighbourhood and the connections to peers; closed once."""

    def __init__(
        self,
        store: ChunkStore,
        directory: Directory,
        *,
        node_id: str,
        host: str,
        port: int,
        token: str,
        upload_bytes_per_s: float | None = None,
        patience_s: float = 3.0,
        address_of: Callable[[int], str] | None = None,
    ) -> None:
        """`host` is listened on; `address_of(port)` is what other nodes are told (default: both).
        `patience_s`: how long a peer may be silent that brings a chunk for us.

        Raises OSError where it cannot listen.
        """
        self._token = token
        self._shared = SharedBlobs(store)
        self._connections = Connections(
            stall_s=patience_s, connect_s=_CONNECT_S, is_plain=lambda host: True
        )
        self.server = PeerServer(
            self._shared,
            host=host,
            port=port,
            token=token,
            fetch_s=0.9 * patience_s,
            upload_bytes_per_s=upload_bytes_per_s,
        )
        address = address_of(self.server.port) if address_of else f"{host}:{self.server.port}"
        self._neighbourhood = Neighbourhood(node_id, address, directory, self._shared)
        self.server.neighbourhood = self._neighbourhood

    def before(self, ref: BlobRef, origin: ChunkSource) -> Sequence[ChunkSource]:
        """The sources of a blob, its peers first."""
        peers = PeerSource(ref, self._neighbourhood, self._connections, token=self._token)
        return (peers, origin)

    def opened(self, blob: Blob) -> None:
        """The blob is shared from now on; who else shares it is known soon."""
        self._shared.add(blob)
        self._neighbourhood.refresh(within_s=_FIRST_WORD_S)

    def closed(self, digest: str) -> None:
        """The blob cannot be fetched here any more; what is in the store is shared."""
        self._shared.remove(digest)

    def close(self) -> None:
        """Leaves the directory, then ends every upload."""
        with ExitStack() as last:
            last.callback(self._connections.close)
            last.callback(self.server.close)
            last.callback(self._neighbourhood.close)
