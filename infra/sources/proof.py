"""The proof that a file which comes in chunks, in any order, is the one that was pinned."""

import threading
from collections.abc import Sequence

from infra.contracts.revision import SourceFile
from infra.sources.chunks import Chunk
from infra.sources.digests import WholeDigest
from infra.sources.partial import KnownDigests


class Proof:
    """Chunk by chunk where an earlier download left digests; else over the whole file, in order.

    A file of which its source publishes nothing that can be computed counts as proven: the source
    was asked for exactly the pinned version.
    """

    def __init__(
        self, file: SourceFile, chunks: Sequence[Chunk], memory: memoryview, known: KnownDigests
    ) -> None:
        self._chunks = chunks
        self._memory = memory
        self._known = known
        self._digest = WholeDigest(file)
        self._is_by_chunk = known.is_known or not self._digest.is_known
        self._lock = threading.Lock()  # guards what follows
        self._is_here = bytearray(len(chunks))
        self._num_seen = 0  # chunks from the first one on that the digest has seen, or sees now
        self._is_busy = False

    def is_right(self, chunk: Chunk, memory: memoryview) -> bool:
        """Whether a chunk is what it should be, as far as one chunk can tell."""
        return not self._known.is_known or self._known.is_right(chunk, memory)

    def add(self, chunk: Chunk) -> None:
        """The chunk is in the memory. Digests what is due, unless another thread is at it."""
        if self._is_by_chunk:
            return
        with self._lock:
            self._is_here[chunk.number] = True
            if self._is_busy:
                return
            self._is_busy = True
        while (due := self._next()) is not None:
            self._digest.update(self._memory[due.offset : due.stop])

    def _next(self) -> Chunk | None:
        with self._lock:
            if self._num_seen < len(self._chunks) and self._is_here[self._num_seen]:
                self._num_seen += 1
                return self._chunks[self._num_seen - 1]
            self._is_busy = False
            return None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be digested."""
        with self._lock:
            return self._is_by_chunk or (self._num_seen == len(self._chunks) and not self._is_busy)

    @property
    def succeeded(self) -> bool:
        """Of one that is over."""
        return self._is_by_chunk or self._digest.is_right
