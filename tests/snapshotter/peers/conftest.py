"""Nodes in one process that share blobs over real HTTP."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapshotter.blob.blob import Blob
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.peers.directory import Directory, MemoryDirectory
from snapshotter.blob.peers.peering import Peering, PeerTerms
from snapshotter.blob.source import ChunkSource
from snapshotter.blob.store import ChunkStore
from snapshotter.blob.stored_blob import BlobRef
from tests.snapshotter.makers import raw_blob

TOKEN = "a token that all nodes know"
NUM_CHUNKS = 24
REF, DATA = raw_blob([bytes([number + 1]) * (1000 + number) for number in range(NUM_CHUNKS)])


class Node:
    def __init__(
        self, name: str, folder: Path, directory: Directory, stack: ExitStack, patience_s: float
    ) -> None:
        self.name = name
        self.store = ChunkStore(folder / name, capacity_bytes=1 << 30, boot_id="boot")
        self.fetcher = Fetcher(self.store, num_workers=4)
        terms = PeerTerms(
            name, "127.0.0.1", 0, TOKEN, patience_s=patience_s, first_word_s=patience_s
        )
        self.peering = Peering(self.store, directory, terms)
        stack.callback(self.store.close)
        stack.callback(self.fetcher.close)
        stack.callback(self.peering.close)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.peering.server.port}"

    def open(self, ref: BlobRef, origin: ChunkSource, *, deadline_s: float = 60) -> Blob:
        blob = Blob(ref, self.peering.before(ref, origin), self.fetcher, deadline_s=deadline_s)
        self.peering.opened(blob)
        return blob


@pytest.fixture
def directory() -> MemoryDirectory:
    return MemoryDirectory(lambda: 0.0)


@pytest.fixture
def make_node(tmp_path: Path, directory: MemoryDirectory) -> Iterator[Callable[..., Node]]:
    with ExitStack() as stack:

        def make(name: str, found_in: Directory = directory, *, patience_s: float = 60) -> Node:
            return Node(name, tmp_path, found_in, stack, patience_s)

        yield make
