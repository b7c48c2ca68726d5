"""Where the bytes of one blob come from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from infra.errors import SourceUnavailable
from snapshotter.blob.codec import Codec
from snapshotter.index.chunk_table import Chunk


class Source(Protocol):
    """Ranges of one blob as it is stored (compressed); may be called from any thread."""

    name: str  # "origin", "file", …: what reports and metrics call it

    def parts(self, offset: int, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes, as they come and unverified.

        Raises SourceUnavailable at any point; may be repeated.
        """
        ...


class ChunkSource(Protocol):
    """Chunks of one blob, uncompressed; may be called from any thread."""

    name: str

    def chunks(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        """The bytes of each chunk of `run`, which are neighbours, in order and unverified.

        Raises SourceUnavailable at any point; may be repeated.
        """
        ...


class Decoded:
    """A ChunkSource made of ranges: one for the whole run, decoded by `codec` while it comes."""

    def __init__(self, source: Source, codec: Codec) -> None:
        self.name = source.name
        self._source = source
        self._codec = codec

    def chunks(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        begin = min(chunk.source_offset for chunk in run)
        end = max(chunk.source_end for chunk in run)
        parts = self._source.parts(begin, end - begin) if end > begin else iter(())
        part, part_begin = memoryview(b""), begin
        for chunk in run:
            decoder = self._codec.decoder(chunk)
            at = chunk.source_offset  # neighbours may share a byte: it is in this part, or the next
            if at < part_begin:  # an index may say anything
                raise SourceUnavailable("chunks do not follow one another in the source")
            while at < chunk.source_end:
                if at >= part_begin + len(part):
                    part_begin += len(part)
                    part = memoryview(_next(parts))
                    continue
                piece = part[at - part_begin : chunk.source_end - part_begin]
                decoder.feed(piece)
                at += len(piece)
            if at == end and next(parts, None) is not None:  # asked, it knows that we are done
                raise SourceUnavailable("a source has given more than was asked for")
            yield decoder.finish()


def _next(parts: Iterator[bytes]) -> bytes:
    part = next(parts, None)
    if part is None:
        raise SourceUnavailable("a source has given less than was asked for")
    return part


class MemorySource:
    """A blob in memory; counts its reads."""

    name = "memory"

    def __init__(self, data: bytes, *, part_bytes: int = 1 << 20) -> None:
        self.data = data
        self.part_bytes = part_bytes
        self.reads: list[tuple[int, int]] = []

    def parts(self, offset: int, length: int) -> Iterator[bytes]:
        self.reads.append((offset, length))
        if offset + length > len(self.data):
            raise SourceUnavailable(f"the blob ends at byte {len(self.data)}")
        for begin in range(offset, offset + length, self.part_bytes):
            yield self.data[begin : min(begin + self.part_bytes, offset + length)]


class FileSource:
    """A blob in a local file."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def parts(self, offset: int, length: int) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise SourceUnavailable(f"{self._path.name}: {error.strerror}") from error
        if len(data) != length:
            raise SourceUnavailable(f"{self._path.name} ends before byte {offset + length}")
        yield data
