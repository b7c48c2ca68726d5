"""How a stream of bytes is cut into chunks that can be fetched and verified one by one."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from struct import Struct

from infra.errors import ImageInvalid

MOST_CHUNKS = 1 << 20
MOST_CHUNK_BYTES = 64 << 20
MOST_BLOB_BYTES = 1 << 40
STRIPE_BYTES = 4 << 20

_RECORD = Struct("<IQI32s")  # length, source offset, source length, digest
_CUT = Struct("<IQI")
# A chunk of which nobody knows the digest: who reads it proves the whole.
UNKNOWN = bytes(32)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes [offset, offset + length) of the stream, made of a range of the source."""

    index: int
    offset: int
    length: int
    digest: bytes  # sha256 of the chunk's own (uncompressed) bytes, 32 bytes, or UNKNOWN
    source_offset: int
    source_length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def source_end(self) -> int:
        return self.source_offset + self.source_length

    @property
    def stripe(self) -> int:
        """Chunks that begin in one stripe of the source are fetched together, by one node."""
        return self.source_offset // STRIPE_BYTES

    def is_genuine(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether `data` is what the table promises, which may be no more than its length."""
        if len(data) != self.length:
            return False
        return self.digest == UNKNOWN or sha256(data).digest() == self.digest


class ChunkTable:
    """All chunks of one stream, in order and without gaps."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        """Raises ImageInvalid unless the chunks follow one another from 0 and stay in bounds."""
        if len(chunks) > MOST_CHUNKS:
            raise ImageInvalid(f"a blob of {len(chunks)} chunks", limit=MOST_CHUNKS)
        end = 0
        for index, chunk in enumerate(chunks):
            if chunk.index != index or chunk.offset != end:
                raise ImageInvalid(f"chunk {index} does not follow the one before it")
            if not 0 < chunk.length <= MOST_CHUNK_BYTES:
                raise ImageInvalid(f"chunk {index} has {chunk.length} bytes")
            if not 0 <= chunk.source_length <= MOST_CHUNK_BYTES + 4096:
                raise ImageInvalid(f"chunk {index} is made of {chunk.source_length} bytes")
            if not 0 <= chunk.source_offset <= MOST_BLOB_BYTES:
                raise ImageInvalid(f"chunk {index} begins at byte {chunk.source_offset}")
            end = chunk.end
        if end > MOST_BLOB_BYTES:
            raise ImageInvalid(f"a blob of {end} bytes", limit=MOST_BLOB_BYTES)
        self._chunks = tuple(chunks)
        self._offsets = [chunk.offset for chunk in chunks]
        self.size = end

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._chunks)

    def __getitem__(self, index: int) -> Chunk:
        return self._chunks[index]

    def at(self, offset: int) -> Chunk:
        """The chunk that holds byte `offset`; IndexError beyond the end."""
        if not 0 <= offset < self.size:
            raise IndexError(offset)
        return self._chunks[bisect_right(self._offsets, offset) - 1]

    def covering(self, offset: int, length: int) -> tuple[Chunk, ...]:
        """The chunks that hold any of [offset, offset + length), which is cut at the end."""
        end = min(offset + length, self.size)
        if offset < 0 or end <= offset:
            return ()
        first = bisect_right(self._offsets, offset) - 1
        last = bisect_right(self._offsets, end - 1)
        return self._chunks[first:last]

    @cached_property
    def packed(self) -> bytes:
        """48 bytes a chunk, little-endian."""
        return b"".join(
            _RECORD.pack(chunk.length, chunk.source_offset, chunk.source_length, chunk.digest)
            for chunk in self._chunks
        )

    @cached_property
    def digest(self) -> bytes:
        """Equal only for tables that cut a stream alike and know the same of its chunks."""
        return sha256(self.packed).digest()

    @cached_property
    def cut(self) -> bytes:
        """Equal for tables that cut a stream alike, whatever they know of its chunks."""
        hashed = sha256()
        for chunk in self._chunks:
            hashed.update(_CUT.pack(chunk.length, chunk.source_offset, chunk.source_length))
        return hashed.digest()

    @cached_property
    def is_proven(self) -> bool:
        """Whether the digest of every chunk is known."""
        return all(chunk.digest != UNKNOWN for chunk in self._chunks)

    @classmethod
    def parse(cls, packed: bytes) -> "ChunkTable":
        """The inverse of `packed`; raises ImageInvalid."""
        if len(packed) % _RECORD.size or len(packed) > MOST_CHUNKS * _RECORD.size:
            raise ImageInvalid(f"a chunk table of {len(packed)} bytes")
        chunks = []
        offset = 0
        for index, record in enumerate(_RECORD.iter_unpack(packed)):
            length, source_offset, source_length, digest = record
            chunks.append(Chunk(index, offset, length, digest, source_offset, source_length))
            offset += length
        return cls(chunks)
