"""How the bytes of a source become the bytes of a chunk."""

from typing import Protocol

import zstandard

from infra.errors import SourceUnavailable
from snapshotter.index.chunk_table import Chunk


class Codec(Protocol):
    """Turns what a source gave for one chunk into the chunk; may be called from any thread."""

    def decode(self, chunk: Chunk, encoded: memoryview) -> bytes:
        """At most `chunk.length` bytes, unverified. Raises SourceUnavailable for damaged ones."""
        ...


class RawCodec:
    """The source is not compressed."""

    def decode(self, chunk: Chunk, encoded: memoryview) -> bytes:
        return bytes(encoded)


class ZstdCodec:
    """Each chunk is a zstd frame of its own."""

    def decode(self, chunk: Chunk, encoded: memoryview) -> bytes:
        decompressor = zstandard.ZstdDecompressor(max_window_size=8 << 20)
        try:
            # a frame that claims another size is refused before anything is allocated
            if zstandard.frame_content_size(encoded) != chunk.length:
                raise SourceUnavailable(f"chunk {chunk.index} is damaged")
            return decompressor.decompress(encoded, max_output_size=chunk.length)
        except zstandard.ZstdError as error:
            raise SourceUnavailable(f"chunk {chunk.index} is damaged: {error}") from error
