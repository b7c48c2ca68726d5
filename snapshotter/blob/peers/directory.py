"""Who shares which blob: the port, and a directory in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol

from snapshotter.blob.peers.peer import Peer

MOST_PEERS: Final = 1000  # of one blob
CLAIM_S: Final = 30.0  # longer than most origins take for a stripe

Peers = Mapping[str, tuple[Peer, ...]]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one node shares: blob digests, each with whether it can fetch what it has not."""

    node_id: str
    address: str
    blobs: Mapping[str, bool]


class Directory(Protocol):
    """Facts that end by themselves `ttl_s` after they were announced last."""

    def exchange(self, announcement: Announcement) -> Peers:
        """Announces, and tells of the other nodes of each of those blobs.

        Blocks; may be called from any thread. Raises StoreUnavailable.
        """
        ...

    def leave(self, announcement: Announcement) -> None:
        """Takes the node out of those blobs at once. Raises StoreUnavailable."""
        ...

    def claim(self, blob: str, stripe: int, peer: Peer, *, instead_of: str | None) -> Peer:
        """Who fetches a stripe from the origin: `peer`, unless another one has said so before and
        is not the node `instead_of`. It ends by itself.

        Blocks for a moment at most. Raises StoreUnavailable.
        """
        ...


class MemoryDirectory:
    """For nodes in one process, and tests; `now` in seconds."""

    def __init__(self, now: Callable[[], float], *, ttl_s: float = 15.0) -> None:
        self._now = now
        self._ttl_s = ttl_s
        self._lock = Lock()
        self._known: dict[str, dict[str, tuple[float, Peer]]] = {}
        self._claims: dict[tuple[str, int], tuple[float, Peer]] = {}

    def exchange(self, announcement: Announcement) -> Peers:
        now = self._now()
        with self._lock:
            found = {}
            for blob, can_fetch in announcement.blobs.items():
                known = self._known.setdefault(blob, {})
                peer = Peer(announcement.node_id, announcement.address, can_fetch)
                known[announcement.node_id] = (now, peer)
                found[blob] = tuple(
                    peer
                    for seen, peer in known.values()
                    if peer.node_id != announcement.node_id and now - seen < self._ttl_s
                )[:MOST_PEERS]
            return found

    def leave(self, announcement: Announcement) -> None:
        with self._lock:
            for blob in announcement.blobs:
                self._known.get(blob, {}).pop(announcement.node_id, None)

    def claim(self, blob: str, stripe: int, peer: Peer, *, instead_of: str | None) -> Peer:
        now = self._now()
        with self._lock:
            claimed_at, holder = self._claims.get((blob, stripe), (now, peer))
            if holder.node_id == instead_of or now - claimed_at >= CLAIM_S:
                holder = peer
            if holder is peer:
                self._claims[blob, stripe] = now, peer
            return holder
