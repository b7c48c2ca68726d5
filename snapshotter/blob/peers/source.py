"""Chunks from other nodes, as a source that stands before the origin."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Final

from infra.errors import SourceUnavailable
from infra.registry.connections import Answer, Connections
from snapshotter.blob.peers.neighbourhood import Neighbourhood
from snapshotter.blob.peers.peer import Peer
from snapshotter.blob.peers.placement import Ask, whom_to_ask
from snapshotter.blob.peers.wire import chunks_path
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.index.chunk_table import Chunk

_MOST_HOLDERS: Final = 3
_MOST_WAITS: Final = 3  # for a peer that waits for the origin, each of some seconds


class PeerSource:
    """Asks the home of a chunk, then one other node; what neither gives is left to the next source,
    unless a node that was not known before is fetching it from there already.

    Yields verified bytes only: a peer whose bytes are wrong is banned and nothing of it is used.
    """

    name = "peer"

    def __init__(
        self, ref: BlobRef, neighbourhood: Neighbourhood, connections: Connections, *, bearer: str
    ) -> None:
        self._ref = ref
        self._neighbourhood = neighbourhood
        self._connections = connections
        self._headers = {
            "Authorization": f"Bearer {bearer}",
            "Firstlight-Table": ref.table.cut.hex(),
        }

    def chunks(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        """Ends early where the peers cannot go on; `run` is of one stripe."""
        peers = self._neighbourhood.peers_of(self._ref.digest)
        own_id = self._neighbourhood.node_id
        left = run
        for ask in whom_to_ask(self._ref.digest, run[0].stripe, own_id, peers):
            parts = self._ask(ask, left)
            yield from parts
            left = left[len(parts) :]
            if not left:
                return
        holder: Peer | None = None
        for _ in range(_MOST_HOLDERS):
            holder = self._neighbourhood.claim(self._ref.digest, run[0].stripe, instead_of=holder)
            if holder is None:
                return
            parts = self._ask(Ask(holder, may_fetch=False), left)
            yield from parts
            left = left[len(parts) :]
            if not left:
                return

    def _ask(self, ask: Ask, chunks: Sequence[Chunk]) -> list[bytes]:
        """The chunks that a peer gave: the first so many, or none."""
        try:
            answer = self._answer(ask, chunks)
            for _ in range(_MOST_WAITS):
                if answer.status == HTTPStatus.ACCEPTED:
                    answer = self._answer(ask, chunks)
        except SourceUnavailable as error:
            self._neighbourhood.failed(ask.peer, error.detail)
            return []
        if answer.status in _NOT_AT_HAND:
            return []
        if answer.status != HTTPStatus.OK:
            self._neighbourhood.failed(ask.peer, f"status {answer.status}")
            return []
        parts = _cut(answer.body, chunks)
        if parts:
            self._neighbourhood.answered(ask.peer)
        else:
            self._neighbourhood.lied(ask.peer)
        return parts

    def _answer(self, ask: Ask, chunks: Sequence[Chunk]) -> Answer:
        return self._connections.ask(
            "GET",
            ask.peer.url + chunks_path(self._ref.digest, chunks, may_fetch=ask.may_fetch),
            headers=self._headers,
            most_bytes=chunks[-1].end - chunks[0].offset,
            follow=False,
        )


# not here; cut by another index; busy: all said by a peer that is in order
_NOT_AT_HAND: Final = frozenset(
    {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE}
)


def _cut(body: bytes, chunks: Sequence[Chunk]) -> list[bytes]:
    """The body as the first of `chunks`; empty unless it ends with one and all are genuine."""
    parts = []
    begin = 0
    for chunk in chunks:
        if begin == len(body):
            break
        part = body[begin : begin + chunk.length]
        if not chunk.is_genuine(part):
            return []
        parts.append(part)
        begin += chunk.length
    return parts
