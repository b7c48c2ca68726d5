"""Layers whose zstd frames can be read one by one: written by `convert`, found in any layer."""

import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Final

import zstandard

from infra.errors import ImageInvalid, SourceUnavailable
from snapshotter.index.chunk_table import MOST_CHUNK_BYTES
from snapshotter.index.entry import Entry, Kind

CHUNK_BYTES: Final = 1 << 20
LEVEL: Final = 3

_MOST_WINDOW_BYTES: Final = 8 << 20  # what every decompressor has to accept (RFC 8878)
_SKIPPABLE: Final = frozenset(0x184D2A50 + number for number in range(16))
_NUM_AHEAD: Final = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, and the bytes that it holds."""

    source_offset: int
    source_length: int
    data: bytes


def cuts(entries: Sequence[Entry], size: int) -> list[int]:
    """Where to cut a tar, from 0 to `size`: every CHUNK_BYTES, and around files that are as large.

    A large file is cut alike in whatever tar it is, so equal files of two images have equal
    chunks.
    """
    large = sorted(
        (entry.offset, entry.offset + entry.size)
        for entry in entries
        if entry.kind is Kind.FILE and entry.size >= CHUNK_BYTES
    )
    places = [0]
    for begin, end in [*large, (size, size)]:
        for border in (begin, end):
            while border - places[-1] > CHUNK_BYTES:
                places.append(places[-1] + CHUNK_BYTES)
            if border > places[-1]:
                places.append(border)
    return places


def write_frames(tar: IO[bytes], places: Sequence[int], target: IO[bytes]) -> None:
    """Each stretch between two places as a frame of its own; together an ordinary zstd layer."""

    def compress(data: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(data)

    with ThreadPoolExecutor(2) as pool:  # zstd works without the GIL
        for begin in range(0, len(places) - 1, _NUM_AHEAD):
            ends = places[begin : begin + _NUM_AHEAD + 1]
            parts = [tar.read(until - since) for since, until in pairwise(ends)]
            for frame in pool.map(compress, parts):
                target.write(frame)


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a layer, in order; frames without content are passed over.

    Raises ImageInvalid for damage and for frames that are larger than a chunk may be, or do not
    say how large they are: nobody can read those one by one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        position = 0
        while position < len(mapped):
            if int.from_bytes(mapped[position : position + 4], "little") in _SKIPPABLE:
                position += 8 + int.from_bytes(mapped[position + 4 : position + 8], "little")
                continue
            frame = _read_frame(mapped, position)
            if frame.data:
                yield frame
            position += frame.source_length


def _read_frame(mapped: mmap.mmap, position: int) -> Frame:
    try:
        length = zstandard.frame_content_size(mapped[position : position + 18])
        if not 0 <= length <= MOST_CHUNK_BYTES:
            raise ImageInvalid(f"the layer has a zstd frame of {length} bytes")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
        inflater = decompressor.decompressobj()
        most = position + length + (length >> 7) + 1024  # no encoder makes it larger than that
        given = mapped[position:most]
        data = inflater.decompress(given)
        if not inflater.eof or len(data) != length:
            raise ImageInvalid("the layer has a zstd frame that ends early")
        return Frame(position, len(given) - len(inflater.unused_data), data)
    except zstandard.ZstdError as error:
        raise ImageInvalid(f"the layer is no zstd file: {error}") from error


def decode_frame(encoded: bytes, length: int) -> bytes:
    """The content of one frame, at most `length` bytes; raises SourceUnavailable for damage."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
    try:
        # a frame that claims another size is refused before anything is allocated
        if zstandard.frame_content_size(encoded) != length:
            raise SourceUnavailable("a frame of zstd is damaged")
        return decompressor.decompress(encoded, max_output_size=length)
    except zstandard.ZstdError as error:
        raise SourceUnavailable(f"a frame of zstd is damaged: {error}") from error
