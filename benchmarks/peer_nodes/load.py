"""What a node brings of one blob: a layer, chunk by chunk, or the weights of a worker."""

import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peer_nodes.origin import RangeSource
from infra.contracts.revision import ResolvedSource, SourceFile
from infra.json_socket import JsonServer
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.landing import Landing, landing_bytes
from infra.sources.node_chunks import share_through
from infra.sources.patience import PATIENT
from infra.sources.port import OnBytes, Remote
from infra.sources.stream import open_source
from snapshotter.blob.blob import Blob
from snapshotter.blob.codec import RawCodec
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.flight import Priority
from snapshotter.blob.peers.peering import Sharing
from snapshotter.blob.source import Decoded
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.blob.weights.open_weights import OpenWeights
from snapshotter.blob.weights.proven import RedisProvenWeights
from snapshotter.index.chunk_table import ChunkTable

_NAME = "model.safetensors"
TOKEN = "bench"  # what nodes show each other
_DEADLINE_S = 120.0


class Load(Protocol):
    """One blob that a node brings."""

    def run(self) -> float:
        """Brings all of it; the seconds that it took."""
        ...

    def is_right(self) -> bool:
        """Whether every byte is the origin's."""
        ...


class Layer:
    """An image's layer, whose node knew of it before the others' start."""

    def __init__(self, orders: Mapping[str, Any], fetcher: Fetcher, sharing: Sharing) -> None:
        self._ref = BlobRef(orders["digest"], ChunkTable.parse(bytes.fromhex(orders["table"])))
        self._sharing = sharing
        origin = Decoded(RangeSource(orders["origin"]), RawCodec())
        sources = sharing.before(self._ref, origin)
        self._blob = Blob(self._ref, sources, fetcher, deadline_s=_DEADLINE_S)
        sharing.opened(self._blob)

    def run(self) -> float:
        began_at = time.monotonic()
        self._sharing.opened(self._blob)
        for flight in self._blob.prefetch(range(len(self._ref.table)), Priority.TRACE):
            flight.landed.wait()
        return time.monotonic() - began_at

    def is_right(self) -> bool:
        text = sha256()
        for offset in range(0, self._blob.size, 4 << 20):
            text.update(self._blob.read(offset, 4 << 20))
        return f"sha256:{text.hexdigest()}" == self._ref.digest


class Weights:
    """A worker's cold start by way of the node's store, of which nobody knew before."""

    def __init__(self, orders: Mapping[str, Any], fetcher: Fetcher, sharing: Sharing) -> None:
        self._origin = orders["origin"]
        self._folder = Path(orders["folder"])
        file = SourceFile(path=_NAME, size=orders["size"], digest=orders["digest"])
        self._source = ResolvedSource(uri=self._origin, digest=orders["digest"], files=(file,))
        proven = RedisProvenWeights(orders["redis"], token=TOKEN)
        weights = OpenWeights(self._remote, fetcher, sharing, proven, deadline_s=_DEADLINE_S)
        JsonServer(self._folder / "weights.sock", weights.verbs).start()
        self._landing = Landing(landing_bytes([file.size]))
        self._landing.touch()

    def run(self) -> float:
        began_at = time.monotonic()
        remote = share_through(self._folder / "weights.sock")(
            self._source, self._remote(self._source)
        )
        opened = open_source(
            self._source,
            self._folder / "cache",
            remote,
            lambda size: self._landing,
            lambda fraction: None,
        )
        assert opened.stream is not None
        opened.stream.finish()  # with the proof that they may be served
        self._memory = opened.stream.memory(_NAME)
        return time.monotonic() - began_at

    def is_right(self) -> bool:
        return f"sha256:{sha256(self._memory).hexdigest()}" == self._source.files[0].digest

    def _remote(self, source: ResolvedSource) -> Remote:
        def locate(file: SourceFile, *, again: bool) -> Location:
            return Location(self._origin)

        def bring(file: SourceFile, path: Path, on_bytes: OnBytes) -> None:
            raise NotImplementedError("there is nothing but weights")

        return Remote(bring, lambda: HttpRanges(locate, PATIENT), PATIENT, lambda: "http")


LOADS = {"layer": Layer, "weights": Weights}
