"""SHA-256 of each piece of a file: what proves a part of it without the rest."""

from dataclasses import dataclass
from typing import Final

from infra.hashing.pieces import DIGEST_BYTES, hash_pieces
from infra.sources.chunks import Chunk

PIECE_BYTES: Final = 1 << 20


def num_pieces(size: int) -> int:
    """Pieces of a file; only the last one may be shorter."""
    return -(-size // PIECE_BYTES)


def digests_of(memory: memoryview) -> bytes:
    """The digests of the pieces of some bytes of a file that begin where a piece does."""
    return hash_pieces(memory, PIECE_BYTES)


def span_of(chunk: Chunk) -> slice:
    """Where the digests of a chunk's pieces are among those of the file."""
    first = chunk.offset // PIECE_BYTES
    return slice(first * DIGEST_BYTES, (first + num_pieces(chunk.length)) * DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class PieceDigests:
    """Those of one file, one after the other, as somebody made them who had proven the whole.

    Empty where nobody has yet.
    """

    packed: bytes

    @classmethod
    def of(cls, packed: bytes, *, size: int) -> "PieceDigests":
        """What does not fit a file of that size tells nothing."""
        return cls(packed if len(packed) == num_pieces(size) * DIGEST_BYTES else b"")

    def __bool__(self) -> bool:
        return self.packed != b""

    def of_chunk(self, chunk: Chunk) -> bytes:
        """The digests of its pieces."""
        return self.packed[span_of(chunk)]
