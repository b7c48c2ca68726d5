"""Reads gzip from the middle: where inflating may begin, what it needs, and how it is done.

A deflate stream may be entered wherever a block begins, given the 32 KiB before it (zlib's
examples/zran.c). indexed_gzip finds such points. To enter one, Python's inflaters lack zlib's
`inflatePrime`, which feeds the bits that are left of a byte; empty blocks of the right number of
bits before them do the same, and all is as always: no GIL, any thread, a bound on the output.
ISA-L inflates 1.6 times as fast as zlib does.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import Any, Final

import zstandard
from isal import isal_zlib

from infra.errors import ImageInvalid, SourceUnavailable

SPAN_BYTES: Final = 4 << 20  # uncompressed, from one point to the next at least
WINDOW_BYTES: Final = 32 << 10

_STEP_BYTES: Final = 256 << 20
_HEADER: Final = Struct("<5sBBQQIII")  # magic, version, flags, sizes, spacing, window, points
_POINT: Final = Struct(
    "<QQBB"
)  # compressed and uncompressed offset, bits, whether a window follows
_RAW: Final = -15
_GZIP: Final = 31
_TRAILER_BYTES: Final = 8
# isal's stubs take its exception for an instance of one
_DAMAGE: Final[tuple[type[Exception], ...]] = (
    isal_zlib.error,  # type: ignore[assignment]
    zstandard.ZstdError,
    IndexError,
)

_FIXED_BLOCK_BITS: Final = 10  # not last (0), type 1 (01), end of block (0000000)
_FIXED_BLOCK: Final = 0b10


@dataclass(frozen=True, slots=True)
class GzipPoint:
    """Where inflating may begin."""

    source_offset: int  # of the first whole byte
    offset: int  # of what comes out
    num_bits: int  # 0 to 7: high bits of the byte before that belong to the stream, too
    window: bytes  # zstd of the 32 KiB before, or nothing where a gzip member begins

    @property
    def source_begin(self) -> int:
        return self.source_offset - bool(self.num_bits)


@dataclass(frozen=True, slots=True)
class GzipMap:
    """All points of one file."""

    points: tuple[GzipPoint, ...]
    size: int  # uncompressed


def map_gzip(path: Path, *, most_bytes: int) -> GzipMap:
    """Finds the points of a gzip file, one every SPAN_BYTES or where the next block begins.

    Raises ImageInvalid for what is no gzip and for more than `most_bytes` of output.
    """
    import indexed_gzip  # type: ignore[import-untyped]  # 20 ms that only indexing needs

    try:
        with indexed_gzip.IndexedGzipFile(
            str(path), spacing=SPAN_BYTES, window_size=WINDOW_BYTES, drop_handles=False
        ) as file:
            position = 0
            while file.seek(position + _STEP_BYTES) == position + _STEP_BYTES:
                position += _STEP_BYTES
                if position > most_bytes:
                    raise ImageInvalid("the layer expands too far", limit=most_bytes)
            file.build_full_index()
            exported = BytesIO()
            file.export_index(fileobj=exported)
            return _parse_export(exported.getvalue(), most_bytes=most_bytes)
    except (OSError, EOFError, indexed_gzip.ZranError) as error:
        raise ImageInvalid(f"the layer is no gzip file: {error}") from error


def _parse_export(exported: bytes, *, most_bytes: int) -> GzipMap:
    magic, _, _, _, size, _, window_bytes, num_points = _HEADER.unpack_from(exported)
    if magic != b"GZIDX" or window_bytes != WINDOW_BYTES:
        raise ImageInvalid("indexed_gzip writes an index of an unknown format")
    if size > most_bytes:
        raise ImageInvalid("the layer expands too far", limit=most_bytes)
    window_at = _HEADER.size + num_points * _POINT.size
    points = []
    compressor = zstandard.ZstdCompressor(level=9)
    for number in range(num_points):
        record = _POINT.unpack_from(exported, _HEADER.size + number * _POINT.size)
        source_offset, offset, num_bits, has_window = record
        window = b""
        if has_window:
            window = compressor.compress(exported[window_at : window_at + WINDOW_BYTES])
            window_at += WINDOW_BYTES
        if offset < size:
            points.append(GzipPoint(source_offset, offset, num_bits, window))
    return GzipMap(tuple(points), size)


def inflate_span(point: GzipPoint, encoded: memoryview, length: int) -> bytes:
    """The `length` bytes from a point on; `encoded` begins at the point's `source_begin`.

    Fewer bytes where the data ends early. Raises SourceUnavailable for damaged data.
    """
    span = Span(point, length)
    span.feed(encoded)
    return span.finish()


class Span:
    """The `length` bytes from a point on, inflated while they come; fed from `source_begin` on.

    Crosses into further gzip members. Raises SourceUnavailable for damaged data.
    """

    def __init__(self, point: GzipPoint, length: int) -> None:
        self._point = point
        self._left = length
        self._output: list[bytes] = []
        self._num_bits = point.num_bits
        self._inflater: Any = None  # isal's stubs have no name for it
        self._trailer = _TRAILER_BYTES  # of the member that was entered raw; zlib reads the others'
        self._after = b""  # what came after a member's end, and is not yet known to begin another

    def feed(self, encoded: bytes | memoryview) -> None:
        """The next bytes of the file, in parts of any size."""
        rest: bytes | memoryview = encoded
        try:
            if self._inflater is None:
                self._inflater = isal_zlib.decompressobj(_RAW, zdict=_window(self._point))
            if self._num_bits and len(rest):
                self._inflate(_primed(self._num_bits, rest[0]))
                self._num_bits, rest = 0, rest[1:]
            while self._left and len(rest):
                if self._inflater.eof:
                    self._after += rest
                    rest = self._after[self._trailer :].lstrip(b"\0")
                    if not rest:
                        return
                    self._inflater, self._trailer = isal_zlib.decompressobj(_GZIP), 0
                    self._after = b""
                self._inflate(rest)
                rest = self._inflater.unused_data
        except _DAMAGE as error:
            raise SourceUnavailable(f"a span of gzip is damaged: {error}") from error

    def finish(self) -> bytes:
        """All that came, fewer than `length` bytes where the data ended early."""
        return b"".join(self._output)

    def _inflate(self, encoded: bytes | memoryview) -> None:
        output = self._inflater.decompress(encoded, self._left)
        self._output.append(output)
        self._left -= len(output)


def _window(point: GzipPoint) -> bytes:
    if not point.window:
        return b""
    # what a frame claims is allocated, whatever the bound on its output
    if not 0 <= zstandard.frame_content_size(point.window) <= WINDOW_BYTES:
        raise SourceUnavailable("a span of gzip has a huge window")
    return zstandard.ZstdDecompressor().decompress(point.window, max_output_size=WINDOW_BYTES)


def _primed(num_bits: int, byte: int) -> bytes:
    """Empty blocks that end `num_bits` before a byte does, and those bits of `byte`."""
    num_before = 8 - num_bits
    bits, num = (_DYNAMIC_BLOCK, _DYNAMIC_BLOCK_BITS) if num_before % 2 else (0, 0)
    while num % 8 != num_before:
        bits |= _FIXED_BLOCK << num
        num += _FIXED_BLOCK_BITS
    bits |= (byte >> num_before) << num
    return bits.to_bytes((num + num_bits) // 8, "little")


def _empty_dynamic_block() -> tuple[int, int]:
    """An empty block with an odd number of bits: two distance codes, where one is the least.

    RFC 1951, 3.2.7: code lengths of 257 literals (256 zeros by two repeats, then a 1 for the end of
    the block) and of two distances (1 and 1), in a code of two symbols: 1 for a length of one, 18
    for a run of zeros.
    """
    fields = [(0, 1), (2, 2)]  # value and width: not last, dynamic
    fields += [(0, 5), (1, 5), (14, 4)]  # 257 literals, 2 distances, 18 lengths of the code's code
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
    fields += [(int(symbol in {18, 1}), 3) for symbol in order]
    fields += [(1, 1), (138 - 11, 7), (1, 1), (118 - 11, 7)]  # 18 twice: 256 zeros
    fields += [(0, 1)] * 3  # 1: the end of the block, and both distances
    fields += [(0, 1)]  # the end of the block
    bits = num = 0
    for value, width in fields:
        bits |= value << num
        num += width
    return bits, num


_DYNAMIC_BLOCK, _DYNAMIC_BLOCK_BITS = _empty_dynamic_block()
