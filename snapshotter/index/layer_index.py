"""The index of one layer: its files, its chunks with their digests, and how to read each.

    magic      8 bytes
    header     u32 length, JSON: layer, diff_id, size, compression, lengths of the sections
    table      ChunkTable.packed
    points     bits (1 byte a chunk) and windows (u32 length, zstd) of a gzip layer
    entries    zstd of JSON, an array each

An index comes from a registry: everything in it is bounded and checked before it is used.
"""

import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson
import zstandard

from infra.errors import ImageInvalid
from infra.registry.reference import DIGEST
from snapshotter.index.chunk_table import UNKNOWN, ChunkTable
from snapshotter.index.entry import MOST_NAME_BYTES, MOST_PATH_BYTES, Entry, Kind
from snapshotter.index.gzip_spans import GzipPoint
from snapshotter.index.tar_scan import MOST_ENTRIES

MEDIA_TYPE: Final = "application/vnd.firstlight.layer-index.v1"
MOST_INDEX_BYTES: Final = 256 << 20

_MAGIC: Final = b"FLINDEX1"
_U32: Final = struct.Struct("<I")
_MOST_HEADER_BYTES: Final = 4096
_MOST_WINDOW_BYTES: Final = 40 << 10
_MOST_ENTRIES_BYTES: Final = 256 << 20
_MOST_ID: Final = (1 << 32) - 1
_KINDS: Final = {kind.value: kind for kind in Kind if kind not in {Kind.CHAR, Kind.BLOCK}}
# of names as bytes, a character each: what entry.safe_path leaves as it is
_SAFE_NAME: Final = rf"(?!\.\.?(?:/|\Z))[^/\0]{{1,{MOST_NAME_BYTES}}}"
_SAFE_PATH: Final = re.compile(rf"(?:{_SAFE_NAME}(?:/{_SAFE_NAME})*)?")

_MALFORMED: Final = (
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
    entries: tuple[Entry, ...]

    def packed(self) -> bytes:
        """The wire form; equal indexes have equal bytes."""
        table = self.table.packed
        points = b"".join(
            bytes([point.num_bits]) + _U32.pack(len(point.window)) + point.window
            for point in self.points
        )
        rows = orjson.dumps([_row(entry) for entry in self.entries])
        entries = zstandard.ZstdCompressor(level=9).compress(rows)
        header = orjson.dumps(
            {
                "layer": self.layer,
                "diff_id": self.diff_id,
                "compression": self.compression,
                "sections": [len(table), len(points), len(entries)],
            }
        )
        return b"".join((_MAGIC, _U32.pack(len(header)), header, table, points, entries))

    @classmethod
    def parse(cls, packed: bytes, *, layer: str) -> "LayerIndex":
        """The inverse of `packed`, for the layer that it is bound to. Raises ImageInvalid."""
        try:
            return _parse(memoryview(packed), layer)
        except _MALFORMED as error:
            raise ImageInvalid(f"the layer's index is malformed: {error}") from error
        except zstandard.ZstdError as error:
            raise ImageInvalid(f"the layer's index is damaged: {error}") from error


def _parse(packed: memoryview, layer: str) -> LayerIndex:
    if bytes(packed[:8]) != _MAGIC or len(packed) > MOST_INDEX_BYTES:
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
    table_bytes, point_bytes, entry_bytes = sections
    if begin != len(packed) or any(length < 0 for length in header["sections"]):
        raise ImageInvalid("the layer's index has another length than it says")
    table = ChunkTable.parse(bytes(table_bytes))
    if any(chunk.digest == UNKNOWN for chunk in table):
        raise ImageInvalid("the index has a chunk without a digest")
    compression = Compression(header["compression"])
    points = _parse_points(point_bytes, table) if compression is Compression.GZIP else ()
    entries = _parse_entries(entry_bytes, table.size)
    return LayerIndex(layer, header["diff_id"], compression, table, points, entries)


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


def _parse_entries(packed: memoryview, size: int) -> tuple[Entry, ...]:
    if not 0 <= zstandard.frame_content_size(packed) <= _MOST_ENTRIES_BYTES:
        raise ImageInvalid("the layer's index has a huge list of files")
    decompressor = zstandard.ZstdDecompressor()
    rows = orjson.loads(decompressor.decompress(packed, max_output_size=_MOST_ENTRIES_BYTES))
    if len(rows) > MOST_ENTRIES:
        raise ImageInvalid("the layer's index has too many files", limit=MOST_ENTRIES)
    return tuple(_entry(row, size) for row in rows)


def _row(entry: Entry) -> list[Any]:
    row = [
        _text(entry.path),
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.size,
        entry.offset,
        _text(entry.target),
    ]
    if entry.xattrs:
        row.append({_text(name): value.hex() for name, value in entry.xattrs.items()})
    return row


def _entry(row: list[Any], size: int) -> Entry:
    path, kind, mode, uid, gid, mtime, file_bytes, offset, target, *xattrs = row
    for number in row[2:8]:  # an index has tens of thousands of rows, and a pull waits for them
        if type(number) is not int or number < 0:
            raise ImageInvalid("the layer's index has a malformed number")
    if uid > _MOST_ID or gid > _MOST_ID or mode > 0o7777 or mtime >= 1 << 33:
        raise ImageInvalid("the layer's index has a malformed number")
    if offset % 512 or offset + file_bytes > size:
        raise ImageInvalid("the layer's index has a file outside of the layer")
    if not _SAFE_PATH.fullmatch(path) or len(path) > MOST_PATH_BYTES:
        raise ImageInvalid("the layer's index has an unsafe path")
    kind = _KINDS[kind]
    if target and (len(target) > MOST_PATH_BYTES or "\0" in target):
        raise ImageInvalid("the layer's index has a link to nowhere")
    if kind is Kind.HARDLINK and not _SAFE_PATH.fullmatch(target):
        raise ImageInvalid("the layer's index has an unsafe link")
    return Entry(
        _untext(path),
        kind,
        mode,
        uid,
        gid,
        mtime,
        file_bytes,
        offset,
        _untext(target) if target else "",
        (0, 0),
        dict(_xattrs(xattrs[0])) if xattrs else {},
    )


def _xattrs(said: dict[str, str]) -> Iterable[tuple[str, bytes]]:
    for name, value in said.items():
        if name.startswith(("trusted.", "user.overlay.")) or len(value) > 128 << 10:
            raise ImageInvalid("the layer's index has an unsafe attribute")
        yield _untext(name), bytes.fromhex(value)


def _text(name: str) -> str:
    """A file name as text that JSON takes whatever its bytes are."""
    return os.fsencode(name).decode("latin-1")


def _untext(text: str) -> str:
    return text if text.isascii() else os.fsdecode(text.encode("latin-1"))
