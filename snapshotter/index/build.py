"""Makes the index of a layer from the layer itself, every byte of it read and hashed."""

import gzip
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Final, cast

import zstandard

from infra.errors import ImageInvalid, SourceUnavailable
from snapshotter.index.chunk_table import Chunk, ChunkTable
from snapshotter.index.entry import Entry
from snapshotter.index.gzip_spans import GzipPoint, inflate_span, map_gzip
from snapshotter.index.inode_table import InodeTable
from snapshotter.index.inode_wire import check_inodes
from snapshotter.index.layer_index import Compression, LayerIndex, most_tar_bytes
from snapshotter.index.layer_tree import layer_tree
from snapshotter.index.tar_scan import TarScanner
from snapshotter.index.zstd_frames import CHUNK_BYTES, read_frames

_MOST_SPAN_BYTES: Final = 32 << 20  # one block of deflate may go on for ever
_MOST_WINDOW_BYTES: Final = 128 << 20  # what `zstd --long` makes, and containerd reads

_COMPRESSIONS: Final = {"gzip": Compression.GZIP, "zstd": Compression.ZSTD}

Piece = tuple[Chunk, bytes, GzipPoint | None]


def compression_of(media_type: str) -> Compression:
    """What an OCI or Docker media type says; raises ImageInvalid for other things than layers."""
    if not media_type.endswith((".tar", "+gzip", "+zstd", ".tar.gzip")):
        raise ImageInvalid(f"a layer of type {media_type[:100]!r}")
    return _COMPRESSIONS.get(media_type[-4:], Compression.NONE)


def index_layer(path: Path, *, layer: str, media_type: str) -> LayerIndex:
    """The index of the layer in `path`, whose digest is `layer`.

    Raises ImageInvalid for archives that are malformed, hostile, or cannot be read in parts.
    """
    scanner = TarScanner()
    whole = sha256()
    chunks, points = [], []
    compression = compression_of(media_type)
    for chunk, data, point in _pieces(path, compression):
        scanner.feed(data)
        whole.update(data)
        chunks.append(chunk)
        if point is not None:
            points.append(point)
    inodes = InodeTable.of(layer_tree(scanner.finish()))
    table = ChunkTable(chunks)
    check_inodes(len(inodes), table.size)
    diff_id = f"sha256:{whole.hexdigest()}"
    return LayerIndex(layer, diff_id, compression, table, tuple(points), inodes)


def unpack_tar(path: Path, target: IO[bytes], *, media_type: str) -> list[Entry]:
    """Writes the layer's tar; its entries. Raises ImageInvalid, as `index_layer` does.

    Any gzip or zstd will do.
    """
    size = path.stat().st_size
    most_bytes = most_tar_bytes(size)
    scanner = TarScanner()
    num_bytes = 0
    try:
        with path.open("rb") as file, _reader(file, compression_of(media_type)) as reader:
            while data := reader.read(CHUNK_BYTES):
                num_bytes += len(data)
                if num_bytes > most_bytes:
                    raise ImageInvalid("the layer expands too far", limit=most_bytes)
                scanner.feed(data)
                target.write(data)
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise ImageInvalid(f"the layer is damaged: {error}") from error
    return scanner.finish()


def _reader(file: IO[bytes], compression: Compression) -> IO[bytes]:
    match compression:
        case Compression.GZIP:
            return cast(IO[bytes], gzip.GzipFile(fileobj=file))
        case Compression.ZSTD:
            decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
            return decompressor.stream_reader(file, read_across_frames=True)
        case Compression.NONE:
            return file


def _pieces(path: Path, compression: Compression) -> Iterator[Piece]:
    size = path.stat().st_size
    if not size:
        raise ImageInvalid("the layer is empty")
    most_bytes = most_tar_bytes(size)
    match compression:
        case Compression.GZIP:
            return _gzip_pieces(path, size, most_bytes)
        case Compression.ZSTD:
            return _bounded(_zstd_pieces(path), most_bytes)
        case Compression.NONE:
            return _raw_pieces(path)


def _bounded(pieces: Iterator[Piece], most_bytes: int) -> Iterator[Piece]:
    for piece in pieces:
        if piece[0].end > most_bytes:
            raise ImageInvalid("the layer expands too far", limit=most_bytes)
        yield piece


def _gzip_pieces(path: Path, size: int, most_bytes: int) -> Iterator[Piece]:
    """Spans, inflated the way a node will inflate them: what is wrong shows here and not there."""
    gzip = map_gzip(path, most_bytes=most_bytes)
    ends = [*((point.source_offset, point.offset) for point in gzip.points[1:]), (size, gzip.size)]
    with path.open("rb") as file:
        for index, (point, (source_end, end)) in enumerate(zip(gzip.points, ends, strict=True)):
            length = end - point.offset
            if length > _MOST_SPAN_BYTES:
                raise ImageInvalid("the layer cannot be read in parts", span_bytes=length)
            begin = point.source_begin
            file.seek(begin)
            encoded = memoryview(file.read(source_end - begin))
            try:
                data = inflate_span(point, encoded, length)
            except SourceUnavailable as error:
                raise ImageInvalid(f"the layer cannot be read in parts: {error}") from error
            if len(data) != length:
                raise ImageInvalid("the layer cannot be read in parts: a span ends early")
            yield _chunk(index, point.offset, data, begin, source_end - begin), data, point


def _zstd_pieces(path: Path) -> Iterator[Piece]:
    offset = 0
    for index, frame in enumerate(read_frames(path)):
        data = frame.data
        yield _chunk(index, offset, data, frame.source_offset, frame.source_length), data, None
        offset += len(data)


def _raw_pieces(path: Path) -> Iterator[Piece]:
    with path.open("rb") as file:
        index = offset = 0
        while data := file.read(CHUNK_BYTES):
            yield _chunk(index, offset, data, offset, len(data)), data, None
            index, offset = index + 1, offset + len(data)


def _chunk(index: int, offset: int, data: bytes, source_offset: int, source_length: int) -> Chunk:
    digest = sha256(data).digest()
    return Chunk(index, offset, len(data), digest, source_offset, source_length)
