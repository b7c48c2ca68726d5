"""Small makers of the snapshotter's tests."""

from collections.abc import Sequence
from hashlib import sha256

from snapshotter.blob.stored_blob import BlobRef
from snapshotter.index.chunk_table import Chunk, ChunkTable


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


def raw_blob(parts: Sequence[bytes]) -> tuple[BlobRef, bytes]:
    """An uncompressed blob whose chunks are `parts`."""
    chunks = []
    offset = 0
    for index, part in enumerate(parts):
        chunks.append(Chunk(index, offset, len(part), sha256(part).digest(), offset, len(part)))
        offset += len(part)
    data = b"".join(parts)
    return BlobRef(digest_of(data), ChunkTable(chunks)), data
