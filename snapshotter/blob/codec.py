"""How the bytes of a source become the bytes of a chunk."""

from collections.abc import Sequence
from typing import Protocol

from snapshotter.index.chunk_table import Chunk
from snapshotter.index.gzip_spans import GzipPoint, Span
from snapshotter.index.layer_index import Compression, LayerIndex
from snapshotter.index.zstd_frames import decode_frame


class Decoder(Protocol):
    """One chunk in the making. Raises SourceUnavailable for damaged data."""

    def feed(self, encoded: memoryview) -> None:
        """The next bytes that the source has for the chunk, in parts of any size."""
        ...

    def finish(self) -> bytes:
        """The chunk: at most its length, unverified."""
        ...


class Codec(Protocol):
    """Turns what a source gives for one chunk into the chunk; may be called from any thread."""

    def decoder(self, chunk: Chunk) -> Decoder: ...


class Whole:
    """A chunk that is made when all of it is here."""

    def __init__(self) -> None:
        self._parts: list[memoryview] = []

    def feed(self, encoded: memoryview) -> None:
        self._parts.append(encoded)

    def finish(self) -> bytes:
        return b"".join(self._parts)


class RawCodec:
    """The source is not compressed."""

    def decoder(self, chunk: Chunk) -> Decoder:
        return Whole()


class Frame(Whole):
    """A chunk that is a frame of zstd."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def finish(self) -> bytes:
        return decode_frame(super().finish(), self._length)


class ZstdCodec:
    """Each chunk is a zstd frame of its own."""

    def decoder(self, chunk: Chunk) -> Decoder:
        return Frame(chunk.length)


class GzipCodec:
    """Each chunk is a stretch of one gzip file, entered at a point of its own."""

    def __init__(self, points: Sequence[GzipPoint]) -> None:
        self._points = points

    def decoder(self, chunk: Chunk) -> Decoder:
        return Span(self._points[chunk.index], chunk.length)


def codec_of(index: LayerIndex) -> Codec:
    """What reads the chunks of that layer."""
    match index.compression:
        case Compression.GZIP:
            return GzipCodec(index.points)
        case Compression.ZSTD:
            return ZstdCodec()
        case Compression.NONE:
            return RawCodec()
