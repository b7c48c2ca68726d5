"""How a file of weights is cut and called before anybody knows the digests of its parts."""

from typing import Final

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.sources.digests import content_digest
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.index.chunk_table import UNKNOWN, Chunk, ChunkTable

CHUNK_BYTES: Final = 1 << 20


def weights_ref(source: ResolvedSource, file: SourceFile) -> BlobRef:
    """Equal on all nodes, by what was pinned alone. Raises ImageInvalid for files out of bounds."""
    starts = range(0, file.size, CHUNK_BYTES)
    chunks = [
        Chunk(index, start, length, UNKNOWN, start, length)
        for index, start in enumerate(starts)
        for length in (min(CHUNK_BYTES, file.size - start),)
    ]
    return BlobRef(_name(source, file), ChunkTable(chunks))


def _name(source: ResolvedSource, file: SourceFile) -> str:
    """Of its content where that is known; else of what it is called where it comes from."""
    digest = file.digest or ""
    if digest.startswith("sha256:"):
        return digest
    return content_digest([f"{source.uri} {file.path} {file.size} {digest} {file.version}"])
