"""The blobs that this node shares: all that it holds, and among them those that it can fetch."""

from collections.abc import Mapping, Sequence
from threading import Lock

from snapshotter.blob.blob import Blob
from snapshotter.blob.store import ChunkStore


class SharedBlobs:
    """Any thread may use it."""

    def __init__(self, store: ChunkStore) -> None:
        self.store = store
        self._lock = Lock()
        self._open: dict[str, Blob] = {}

    def add(self, blob: Blob) -> None:
        """From now on the node brings chunks of it for others, too."""
        with self._lock:
            self._open[blob.ref.digest] = blob

    def remove(self, digest: str) -> None:
        """From now on the node only gives what it has of it. May be repeated."""
        with self._lock:
            self._open.pop(digest, None)

    def announced(self) -> Mapping[str, bool]:
        """Digests, each with whether this node can fetch the blob."""
        with self._lock:
            held = {digest for digest, stored in self.store.blobs().items() if stored.kept_bytes}
            return {digest: digest in self._open for digest in sorted(held | set(self._open))}

    def attend(self, digest: str, indices: Sequence[int], *, within_s: float) -> bool:
        """Waits for chunks that the origin is giving to this node, see Fetcher.attend."""
        with self._lock:
            blob = self._open.get(digest)
        return blob is not None and blob.attend(indices, within_s=within_s)

    def bring(self, digest: str, indices: Sequence[int], *, within_s: float) -> None:
        """Fetches chunks for somebody else, if this blob can be; they are in the store then."""
        with self._lock:
            blob = self._open.get(digest)
        if blob is not None:
            blob.carry(indices, within_s=within_s)
