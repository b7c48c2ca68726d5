"""The index of one layer: its files, its chunks with their digests, and how to read each.

    magic      8 bytes
    header     u32 length, JSON: layer, diff_id, size, compression, lengths of the sections
    table      ChunkTable.packed
    points     bits (1 byte a chunk) and windows (u32 length, zstd) of a gzip layer
    files      zstd of the inodes, see inode_wire

An index comes from a registry: everything in it is bounded and checked before it is used.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import orjson
import zstandard

from infra.errors import ImageInvalid
from infra.registry.reference import DIGEST
from snapshotter.index.chunk_table import UNKNOWN, ChunkTable
from snapshotter.index.gzip_spans import GzipPoint
from snapshotter.index.inode_table import InodeTable
from snapshotter.index.inode_wire import packed_inodes, parse_inodes

MEDIA_TYPE: Final = "application/vnd.firstlight.layer-index.v2"
MOST_INDEX_BYTES: Final = 256 << 20

_MAGIC: Final = b"FLINDEX2"
_OF_ANY_VERSION: Final = b"FLINDEX"
_U32: Final = struct.Struct("<I")
_MOST_HEADER_BYTES: Final = 4096
_MOST_WINDOW_BYTES: Final = 40 << 10
_MOST_FILES_BYTES: Final = 128 << 20
_ALWAYS_FILES_BYTES: Final = 1 << 20
_MOST_RATIO: Final = 200  # tar to layer; real ones stay below 20
_MOST_TAR_BYTES: Final = 256 << 30
# what reading malformed data raises; whoever calls `parse` hears of ImageInvalid only
MALFORMED: Final = (
    ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error
)  # fmt: skip


class Compression(StrEnum):
    """How the layer is stored."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


@dataclass(frozen=True)
class LayerIndex:
    """What a node needs to mount a layer that it does not have."""

    layer: str  # digest of the layer as the registry has it
    diff_id: str  # digest of the tar
    compression: Compression
    table: ChunkTable
    points: tuple[GzipPoint, ...]  # of a gzip layer, one a chunk
    inodes: InodeTable

    def packed(self) -> bytes:
        """The wire form; equal indexes have equal bytes."""
        table = self.table.packed
        points = b"".join(
            bytes([point.num_bits]) + _U32.pack(len(point.window)) + point.window
            for point in self.points
        )
        files = zstandard.ZstdCompressor(level=9).compress(packed_inodes(self.inodes))
        header = orjson.dumps(
            {
                "layer": self.layer,
                "diff_id": self.diff_id,
                "compression": self.compression,
                "sections": [len(table), len(points), len(files)],
            }
        )
        return b"".join((_MAGIC, _U32.pack(len(header)), header, table, points, files))

    @classmethod
    def parse(cls, packed: bytes, *, layer: str, layer_bytes: int | None = None) -> "LayerIndex":
        """The inverse of `packed`, for the layer that it is bound to, and within what a layer of
        `layer_bytes` can hold, where that is known. Raises ImageInvalid.
        """
        try:
            return _parse(memoryview(packed), layer, layer_bytes)
        except MALFORMED as error:
            raise ImageInvalid(f"the layer's index is malformed: {error}") from error
        except zstandard.ZstdError as error:
            raise ImageInvalid(f"the layer's index is damaged: {error}") from error


def is_of_another_version(packed: bytes | memoryview) -> bool:
    """Whether it is an index, and not one that this program reads."""
    magic = bytes(packed[: len(_MAGIC)])
    return magic != _MAGIC and magic.startswith(_OF_ANY_VERSION)


def most_tar_bytes(layer_bytes: int) -> int:
    """How large the tar of a layer of that size may be."""
    return min(_MOST_TAR_BYTES, layer_bytes * _MOST_RATIO + (16 << 20))


def _parse(packed: memoryview, layer: str, layer_bytes: int | None) -> LayerIndex:
    magic = bytes(packed[:8])
    if is_of_another_version(packed):
        raise ImageInvalid("the layer's index is of another version: index the image again")
    if magic != _MAGIC or len(packed) > MOST_INDEX_BYTES:
        raise ImageInvalid("the layer's index has an unknown format")
    (header_bytes,) = _U32.unpack_from(packed, 8)
    if header_bytes > _MOST_HEADER_BYTES:
        raise ImageInvalid("the layer's index has a huge header")
    header = orjson.loads(packed[12 : 12 + header_bytes])
    if header["layer"] != layer:
        raise ImageInvalid(f"the index is one of {str(header['layer'])[:100]}, not of {layer}")
    if not DIGEST.fullmatch(header["diff_id"]):
        raise ImageInvalid("the layer's index names no tar")
    begin = 12 + header_bytes
    sections = []
    for length in header["sections"]:
        sections.append(packed[begin : begin + length])
        begin += length
    table_bytes, point_bytes, file_bytes = sections
    if begin != len(packed) or any(length < 0 for length in header["sections"]):
        raise ImageInvalid("the layer's index has another length than it says")
    table = ChunkTable.parse(bytes(table_bytes))
    if any(chunk.digest == UNKNOWN for chunk in table):
        raise ImageInvalid("the index has a chunk without a digest")
    _check_size(table, layer_bytes)
    compression = Compression(header["compression"])
    points = _parse_points(point_bytes, table) if compression is Compression.GZIP else ()
    inodes = _parse_files(file_bytes, table.size)
    return LayerIndex(layer, header["diff_id"], compression, table, points, inodes)


def _check_size(table: ChunkTable, layer_bytes: int | None) -> None:
    """What is claimed of the tar bounds what is made of the rest."""
    source_bytes = max((chunk.source_end for chunk in table), default=0)
    if layer_bytes is not None and source_bytes > layer_bytes:
        raise ImageInvalid(f"the index is one of {source_bytes} bytes", limit=layer_bytes)
    if table.size > (most := most_tar_bytes(source_bytes)):
        raise ImageInvalid(f"the index has a tar of {table.size} bytes", limit=most)


def _parse_points(packed: memoryview, table: ChunkTable) -> tuple[GzipPoint, ...]:
    points = []
    position = 0
    for chunk in table:
        num_bits = packed[position]
        (window_bytes,) = _U32.unpack_from(packed, position + 1)
        position += 5
        if num_bits > 7 or window_bytes > _MOST_WINDOW_BYTES:
            raise ImageInvalid("the layer's index has a malformed point")
        window = bytes(packed[position : position + window_bytes])
        position += window_bytes
        source_offset = chunk.source_offset + bool(num_bits)
        points.append(GzipPoint(source_offset, chunk.offset, num_bits, window))
    if position != len(packed):
        raise ImageInvalid("the layer's index has more points than chunks")
    return tuple(points)


def _parse_files(packed: memoryview, size: int) -> InodeTable:
    # names, targets and attributes, which are written as hex, are in the tar, too
    most_bytes = min(_MOST_FILES_BYTES, _ALWAYS_FILES_BYTES + 2 * size)
    if not 0 <= zstandard.frame_content_size(packed) <= most_bytes:
        raise ImageInvalid("the layer's index has a huge list of files")
    decompressor = zstandard.ZstdDecompressor()
    unpacked = decompressor.decompress(packed, max_output_size=most_bytes)
    return parse_inodes(unpacked, layer_bytes=size)
