"""How the bytes of a source become the bytes of a chunk."""

from collections.abc import Sequence
from typing import Protocol

from snapshotter.index.chunk_table import Chunk
from snapshotter.index.gzip_spans import GzipPoint, inflate_span
from snapshotter.index.layer_index import Compression, LayerIndex
from snapshotter.index.zstd_frames import decode_frame


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
        return decode_frame(encoded, chunk.length)


class GzipCodec:
    """Each chunk is a stretch of one gzip file, entered at a point of its own."""

    def __init__(self, points: Sequence[GzipPoint]) -> None:
        self._points = points

    def decode(self, chunk: Chunk, encoded: memoryview) -> bytes:
        return inflate_span(self._points[chunk.index], encoded, chunk.length)


def codec_of(index: LayerIndex) -> Codec:
    """What reads the chunks of that layer."""
    match index.compression:
        case Compression.GZIP:
            return GzipCodec(index.points)
        case Compression.ZSTD:
            return ZstdCodec()
        case Compression.NONE:
            return RawCodec()
