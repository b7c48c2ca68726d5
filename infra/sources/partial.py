"""One file of which some chunks are on disk: what is there, proven by a digest for each."""

import hashlib
import mmap
import os
from pathlib import Path
from typing import Final

from infra.sources.chunks import Chunk

DIGEST_BYTES: Final = 32
SUFFIX: Final = ".chunks"


class PartialFile:
    """A file of its final size and, beside it, the SHA-256 of each chunk that was written.

    A digest is written after its chunk, so that a chunk without one was never whole. What is found
    later is read and compared: a machine may have lost its power between the two.
    """

    def __init__(self, path: Path, size: int, num_chunks: int) -> None:
        """Reserves the space. Raises OSError, for a full disk above all."""
        self._path = path
        self._size = size
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        journal = path.with_name(path.name + SUFFIX)
        self._journal_path = journal
        self._journal = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if os.fstat(self._file).st_size != size:
            os.ftruncate(self._file, size)
        if os.fstat(self._journal).st_size != num_chunks * DIGEST_BYTES:
            os.ftruncate(self._journal, 0)
            os.ftruncate(self._journal, num_chunks * DIGEST_BYTES)
        if size:
            os.posix_fallocate(self._file, 0, size)

    def map(self) -> memoryview:
        """The file itself as memory: what is written there is on disk without a copy."""
        if not self._size:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._file, self._size, flags=mmap.MAP_SHARED))

    def load(self, chunk: Chunk, memory: memoryview, *, is_mapped: bool) -> bool:
        """Whether the chunk was on disk, whole; it is in `memory` then."""
        known = os.pread(self._journal, DIGEST_BYTES, chunk.number * DIGEST_BYTES)
        if known in {b"", bytes(DIGEST_BYTES)}:
            return False
        done = chunk.length if is_mapped else 0
        while done < chunk.length:
            count = os.preadv(self._file, [memory[done:]], chunk.offset + done)
            if count == 0:
                return False
            done += count
        return hashlib.sha256(memory).digest() == known

    def save(self, chunk: Chunk, memory: memoryview, *, is_mapped: bool) -> None:
        """From now on it is on disk; it is there already where `memory` is the mapped file."""
        done = chunk.length if is_mapped else 0
        while done < chunk.length:
            done += os.pwrite(self._file, memory[done:], chunk.offset + done)
        digest = hashlib.sha256(memory).digest()
        os.pwrite(self._journal, digest, chunk.number * DIGEST_BYTES)

    def forget(self) -> None:
        """Nothing of it can be trusted."""
        os.ftruncate(self._journal, 0)

    def publish(self, target: Path, digests: Path) -> None:
        """Moves the file, which is whole, to where others see it, and its chunks' digests too.

        Blocks until the disk has it.
        """
        os.fsync(self._file)
        digests.parent.mkdir(exist_ok=True)
        self._journal_path.replace(digests)
        self._path.replace(target)

    def close(self) -> None:
        os.close(self._file)
        os.close(self._journal)


class KnownDigests:
    """The digests of a file's chunks from an earlier download of the same content."""

    def __init__(self, path: Path, num_chunks: int) -> None:
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        self._digests = content if len(content) == num_chunks * DIGEST_BYTES else b""

    @property
    def is_known(self) -> bool:
        """Whether there is one for each chunk."""
        return self._digests != b""

    def is_right(self, chunk: Chunk, memory: memoryview) -> bool:
        start = chunk.number * DIGEST_BYTES
        expected = self._digests[start : start + DIGEST_BYTES]
        return hashlib.sha256(memory).digest() == expected
