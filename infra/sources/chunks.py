"""A download in chunks: which is read next, and which takes so long that it is asked for twice."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

FIRST_BYTES: Final = 1 << 20  # of a file: its header comes soon
CHUNK_BYTES: Final = 8 << 20
SLOW: Final = 4  # times the median
_REMEMBERED: Final = 33


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes of one file; `index` counts over all files, `number` within its own."""

    index: int
    file: int
    number: int
    offset: int
    length: int

    @property
    def stop(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Task:
    """What a reader does next; a hedge is a second attempt beside a slow first one."""

    chunk: Chunk
    is_hedge: bool = False


def plan_chunks(sizes: Sequence[int]) -> tuple[Chunk, ...]:
    """The chunks of files of these sizes, in the order of files and bytes."""
    chunks: list[Chunk] = []
    for file, size in enumerate(sizes):
        starts = [0, *range(FIRST_BYTES, size, CHUNK_BYTES)] if size else []
        for number, start in enumerate(starts):
            stop = min(size, start + (CHUNK_BYTES if number else FIRST_BYTES))
            chunks.append(Chunk(len(chunks), file, number, start, stop - start))
    return tuple(chunks)


class ChunkBoard:
    """Who reads what, decided with the time as an argument; its owner holds a lock.

    First of all come the beginnings of files, since they say what the rest is; then what somebody
    waits for; then everything in order.
    """

    def __init__(self, chunks: Sequence[Chunk], *, hedge_s: float) -> None:
        self._chunks = chunks
        self._hedge_s = hedge_s
        first = [chunk.index for chunk in chunks if chunk.number == 0]
        rest = [chunk.index for chunk in chunks if chunk.number > 0]
        self._waiting = dict.fromkeys(first + rest)  # a set that keeps its order
        self._urgent: dict[int, None] = {}
        self._begun: dict[int, float] = {}  # being read, since when
        self._hedged: set[int] = set()
        self._is_here = bytearray(len(chunks))
        self._num_missing = len(chunks)
        self._took: deque[float] = deque(maxlen=_REMEMBERED)  # seconds of the last chunks
        self._of_file: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            self._of_file.setdefault(chunk.file, []).append(chunk)
        self._offsets = {
            file: [chunk.offset for chunk in of_file] for file, of_file in self._of_file.items()
        }

    @property
    def is_over(self) -> bool:
        """Whether everything is here."""
        return self._num_missing == 0

    def next(self, now: float) -> Task | None:
        """None where there is nothing to do at this moment."""
        slow = self._slowest(now)
        if slow is not None:
            self._hedged.add(slow)
            return Task(self._chunks[slow], is_hedge=True)
        for waiting in (self._urgent, self._waiting):
            if waiting:
                index = next(iter(waiting))
                del waiting[index]
                self._begun[index] = now
                return Task(self._chunks[index])
        return None

    def want(self, file: int, start: int, stop: int) -> None:
        """Somebody waits for these bytes."""
        for chunk in self._covering(file, start, stop):
            if chunk.index in self._waiting:
                del self._waiting[chunk.index]
                self._urgent[chunk.index] = None

    def arrived(self, chunk: Chunk, now: float) -> None:
        """All of it is here."""
        if not self._is_here[chunk.index]:
            self._is_here[chunk.index] = True
            self._num_missing -= 1
            self._took.append(now - self._begun.pop(chunk.index))

    def hedge_failed(self, chunk: Chunk) -> None:
        """It may be hedged again."""
        self._hedged.discard(chunk.index)

    def is_here(self, chunk: Chunk) -> bool:
        return bool(self._is_here[chunk.index])

    def has(self, file: int, start: int, stop: int) -> bool:
        """Whether all bytes of the file from `start` to `stop` are here."""
        return all(self._is_here[chunk.index] for chunk in self._covering(file, start, stop))

    def _covering(self, file: int, start: int, stop: int) -> list[Chunk]:
        """The chunks with the bytes from `start` to `stop`; of no bytes, none."""
        if start >= stop or file not in self._of_file:
            return []
        offsets = self._offsets[file]
        first = max(0, bisect_right(offsets, start) - 1)
        return self._of_file[file][first : bisect_left(offsets, stop)]

    def _slowest(self, now: float) -> int | None:
        if not self._begun:
            return None
        oldest = min(
            (index for index in self._begun if index not in self._hedged),
            key=lambda index: self._begun[index],
            default=None,
        )
        usual = SLOW * median(self._took) if self._took else 0.0
        if oldest is None or now - self._begun[oldest] <= max(self._hedge_s, usual):
            return None
        return oldest
