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

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, unverified. Raises SourceUnavailable; may be repeated."""
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
    """A ChunkSource made of ranges: one read for the whole run, each chunk decoded by `codec`."""

    def __init__(self, source: Source, codec: Codec) -> None:
        self.name = source.name
        self._source = source
        self._codec = codec

    def chunks(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        begin = min(chunk.source_offset for chunk in run)
        end = max(chunk.source_end for chunk in run)
        data = memoryview(self._source.read(begin, end - begin) if end > begin else b"")
        for chunk in run:
            encoded = data[chunk.source_offset - begin : chunk.source_end - begin]
            yield self._codec.decode(chunk, encoded)


class MemorySource:
    """A blob in memory; counts its reads."""

    name = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        if offset + length > len(self.data):
            raise SourceUnavailable(f"the blob ends at byte {len(self.data)}")
        return self.data[offset : offset + length]


class FileSource:
    """A blob in a local file."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise SourceUnavailable(f"{self._path.name}: {error.strerror}") from error
        if len(data) != length:
            raise SourceUnavailable(f"{self._path.name} ends before byte {offset + length}")
        return data
