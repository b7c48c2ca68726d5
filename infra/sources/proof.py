"""The proof that a file which comes in chunks, in any order, is the one that was pinned."""

import threading
from collections.abc import Sequence

from infra.contracts.revision import SourceFile
from infra.sources.chunks import Chunk
from infra.sources.digests import WholeDigest
from infra.sources.piece_digests import PieceDigests, digests_of


class Proof:
    """Piece by piece where somebody who had proven the file left digests; else the whole, in order.

    A file of which its source publishes nothing that can be computed counts as proven: the source
    was asked for exactly the pinned version.
    """

    def __init__(
        self, file: SourceFile, chunks: Sequence[Chunk], memory: memoryview, known: PieceDigests
    ) -> None:
        self._chunks = chunks
        self._memory = memory
        self._digest = WholeDigest(file)
        self._lock = threading.Lock()  # guards what follows
        self._known = known
        self._is_whole = not known and self._digest.is_known
        self._is_here = bytearray(len(chunks))
        self._num_seen = 0  # chunks from the first one on that the digest has seen, or sees now
        self._is_busy = False

    @property
    def known(self) -> PieceDigests:
        """What chunks are compared with."""
        with self._lock:
            return self._known

    def is_right(self, chunk: Chunk, memory: memoryview) -> bool:
        """Whether a chunk is what it should be, as far as one chunk can tell."""
        known = self.known
        return not known or digests_of(memory) == known.of_chunk(chunk)

    def doubt_digests(self) -> bool:
        """The source insists on other bytes than the digests of pieces ask for.

        From now on the whole is proven instead, where its digest can be computed; whether it can.
        """
        with self._lock:
            if self._digest.is_known:
                self._known = PieceDigests(b"")
                self._is_whole = True
            return self._is_whole

    def add(self, chunk: Chunk) -> None:
        """The chunk is in the memory. Digests what is due, unless another thread is at it."""
        with self._lock:
            self._is_here[chunk.number] = True
            if self._is_busy or not self._is_whole:
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
            is_seen = self._num_seen == len(self._chunks) and not self._is_busy
            return is_seen or not self._is_whole

    @property
    def succeeded(self) -> bool:
        """Of one that is over."""
        with self._lock:
            return not self._is_whole or self._digest.is_right
