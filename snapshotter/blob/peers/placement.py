"""Which node a chunk has its home on: rendezvous hashing, pure.

Every node ranks all nodes for a chunk by a hash of both and comes to the same order (Thaler and
Ravishankar, 1998); one that comes or goes moves only the chunks that are its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from snapshotter.blob.peers.peer import Peer


@dataclass(frozen=True, slots=True)
class Ask:
    """Whom to ask for a chunk; `may_fetch`: it is to bring what it has not."""

    peer: Peer
    may_fetch: bool


def home_of(blob: str, stripe: int, node_ids: Iterable[str]) -> str | None:
    """The node that fetches the stripe for all; None where there is no node."""
    return max(node_ids, key=lambda node_id: _weight(blob, stripe, node_id), default=None)


def whom_to_ask(blob: str, stripe: int, own_id: str, peers: Iterable[Peer]) -> tuple[Ask, ...]:
    """At most two: the home of the stripe, and the one of the others that would be it next.

    Where this node is the home itself, only the other one: it may have been the home before.
    """
    ranked = sorted(peers, key=lambda peer: _weight(blob, stripe, peer.node_id), reverse=True)
    fetching = [peer for peer in ranked if peer.can_fetch]
    home = fetching[0] if fetching else None
    if home is not None and _weight(blob, stripe, own_id) > _weight(blob, stripe, home.node_id):
        home = None
    other = next((peer for peer in ranked if peer is not home), None)
    asks = []
    if home is not None:
        asks.append(Ask(home, may_fetch=True))
    if other is not None:
        asks.append(Ask(other, may_fetch=False))
    return tuple(asks)


def _weight(blob: str, stripe: int, node_id: str) -> bytes:
    return blake2b(f"{blob} {stripe} {node_id}".encode(), digest_size=8).digest()
