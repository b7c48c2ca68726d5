"""One file of which some chunks are on disk: what is there, proven by a digest for each piece."""

import mmap
import os
from pathlib import Path
from typing import Final

from infra.hashing.pieces import DIGEST_BYTES
from infra.paging import address_of, write_protect
from infra.sources.chunks import Chunk
from infra.sources.piece_digests import digests_of, num_pieces, span_of

SUFFIX: Final = ".pieces"


class PartialFile:
    """A file of its final size and, beside it, the SHA-256 of each piece that was written.

    Digests are written after their chunk, so that a piece without one was never whole. What is
    found later is read and compared: a machine may have lost its power between the two.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Reserves the space. Raises OSError, for a full disk above all."""
        self._path = path
        self._size = size
        self._mapping: mmap.mmap | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        journal = path.with_name(path.name + SUFFIX)
        self._journal_path = journal
        self._journal = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._journal_bytes = num_pieces(size) * DIGEST_BYTES
        if os.fstat(self._file).st_size != size:
            os.ftruncate(self._file, size)
        if os.fstat(self._journal).st_size != self._journal_bytes:
            os.ftruncate(self._journal, 0)
            os.ftruncate(self._journal, self._journal_bytes)
        if size:
            os.posix_fallocate(self._file, 0, size)

    def map(self) -> memoryview:
        """The file itself as memory: what is written there is on disk without a copy."""
        if not self._size:
            return memoryview(b"")
        self._mapping = mmap.mmap(self._file, self._size, flags=mmap.MAP_SHARED)
        return memoryview(self._mapping)

    def seal(self) -> None:
        """Nobody writes into what was mapped any more."""
        if self._mapping is not None:
            write_protect(address_of(self._mapping), self._size)

    def load(self, chunk: Chunk, memory: memoryview, digests: bytes, *, is_mapped: bool) -> bool:
        """Whether the chunk was on disk, whole; it is in `memory` then.

        `digests` are those that its pieces should have, where they are known.
        """
        span = span_of(chunk)
        known = os.pread(self._journal, span.stop - span.start, span.start)
        if len(known) != span.stop - span.start or _has_gap(known):
            return False
        done = chunk.length if is_mapped else 0
        while done < chunk.length:
            count = os.preadv(self._file, [memory[done:]], chunk.offset + done)
            if count == 0:
                return False
            done += count
        return digests_of(memory) == (digests or known)

    def save(self, chunk: Chunk, memory: memoryview, digests: bytes, *, is_mapped: bool) -> None:
        """From now on it is on disk; it is there already where `memory` is the mapped file.

        `digests` are those of its pieces where they are known; else they are made here.
        """
        done = chunk.length if is_mapped else 0
        while done < chunk.length:
            done += os.pwrite(self._file, memory[done:], chunk.offset + done)
        os.pwrite(self._journal, digests or digests_of(memory), span_of(chunk).start)

    def forget(self) -> None:
        """Nothing of it can be trusted."""
        os.ftruncate(self._journal, 0)
        os.ftruncate(self._journal, self._journal_bytes)

    def digests(self) -> bytes:
        """Of all pieces, once every chunk was saved."""
        return os.pread(self._journal, self._journal_bytes, 0)

    def publish(self, target: Path, digests: Path) -> None:
        """Moves the file, which is whole, to where others see it, and its pieces' digests too.

        Blocks until the disk has it.
        """
        os.fsync(self._file)
        digests.parent.mkdir(exist_ok=True)
        self._journal_path.replace(digests)
        self._path.replace(target)

    def close(self) -> None:
        os.close(self._file)
        os.close(self._journal)


def _has_gap(digests: bytes) -> bool:
    """Whether there is a piece of which nothing was written."""
    nothing = bytes(DIGEST_BYTES)
    return any(
        digests[at : at + DIGEST_BYTES] == nothing for at in range(0, len(digests), DIGEST_BYTES)
    )
