"""How a file of weights is cut and called, whether or not the digests of its parts are known."""

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.hashing.pieces import DIGEST_BYTES
from infra.sources.digests import content_digest
from infra.sources.piece_digests import PIECE_BYTES, PieceDigests
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.index.chunk_table import UNKNOWN, Chunk, ChunkTable

NOT_PROVEN = PieceDigests(b"")


def weights_ref(
    source: ResolvedSource, file: SourceFile, known: PieceDigests = NOT_PROVEN
) -> BlobRef:
    """Equal on all nodes, by what was pinned alone. Raises ImageInvalid for files out of bounds."""
    chunks = []
    for index, start in enumerate(range(0, file.size, PIECE_BYTES)):
        length = min(PIECE_BYTES, file.size - start)
        digest = known.packed[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] or UNKNOWN
        chunks.append(Chunk(index, start, length, digest, start, length))
    return BlobRef(blob_name(source, file), ChunkTable(chunks))


def digests_in(table: ChunkTable) -> PieceDigests:
    """What a table of weights knows of the pieces."""
    if not table.is_proven:
        return NOT_PROVEN
    return PieceDigests(b"".join(chunk.digest for chunk in table))


def blob_name(source: ResolvedSource, file: SourceFile) -> str:
    """Of its content where that is known; else of what it is called where it comes from."""
    digest = file.digest or ""
    if digest.startswith("sha256:"):
        return digest
    return content_digest([f"{source.uri} {file.path} {file.size} {digest} {file.version}"])
