"""A blob as a file that is all there: what is missing is fetched while the reader waits."""

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Final

import structlog

from infra.backoff import Backoff
from infra.errors import PlatformError
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.flight import Flight, OnLand, Priority, Target, ignore_landing
from snapshotter.blob.source import ChunkSource
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.index.chunk_table import Chunk

log = structlog.get_logger()

OnTouch = Callable[[str, int], None]

_BACKOFF: Final = Backoff(first_s=0.05, most_s=2.0)
_READ_AHEAD_BYTES: Final = 4 << 20


def ignore_touch(digest: str, index: int) -> None:
    """Nobody records."""


class Blob:
    """Bytes of one blob, every one of them verified; any thread may read. Pinned until closed."""

    def __init__(
        self,
        ref: BlobRef,
        sources: Sequence[ChunkSource],
        fetcher: Fetcher,
        *,
        deadline_s: float = 30.0,
        on_touch: OnTouch = ignore_touch,
        on_land: OnLand = ignore_landing,
        least_ahead_bytes: int = 0,
    ) -> None:
        """`least_ahead_bytes`: of the source, after a miss anywhere: what a round trip costs."""
        self.ref = ref
        self.size = ref.table.size
        self._stored = fetcher.store.open(ref)
        self._target = Target(ref, sources, on_land)
        self._fetcher = fetcher
        self._deadline_s = deadline_s
        self._on_touch = on_touch
        self._least_ahead_bytes = least_ahead_bytes
        self._lock = Lock()  # guards the next two
        self._next_index = -1  # where a reader that goes on would continue
        self._ahead = 1

    def read(self, offset: int, length: int, priority: Priority = Priority.DEMAND) -> bytes:
        """Up to `length` bytes, fewer only at the end.

        Raises OSError(EIO) when no source has given right bytes within the deadline. The next
        read tries anew.
        """
        data = self.cached(offset, length)
        if data is not None:
            return data
        chunks = self.ref.table.covering(offset, length)
        self._touch(chunks)
        flights = self._fetcher.request(
            self._target, chunks, priority, ahead=self._likely_next(chunks)
        )
        unkept = {
            flight.chunk.index: flight.data
            for flight in self._await(flights, priority)
            if flight.data is not None
        }
        end = min(offset + length, self.size)
        return b"".join(self._part(chunk, unkept, offset, end) for chunk in chunks)

    def bring(self, offset: int, length: int) -> Counter[str]:
        """Returns when these bytes are in the store, with how many came from where just now.

        Those that were here are the cache's. Raises OSError: EIO as `read`, ENOSPC where the store
        has no room for them.
        """
        chunks = self.ref.table.covering(offset, length)
        flights = self._await(
            self._fetcher.request(self._target, chunks, Priority.DEMAND), Priority.DEMAND
        )
        if any(flight.data is not None for flight in flights):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        came = Counter({"cache": sum(chunk.length for chunk in chunks)})
        for flight in flights:
            if flight.came_from in {"peer", "origin"}:
                came[flight.came_from] += flight.chunk.length
                came["cache"] -= flight.chunk.length
        return came

    def cached(self, offset: int, length: int) -> bytes | None:
        """Up to `length` bytes, if all of them are here; never waits for a source."""
        chunks = self.ref.table.covering(offset, length)
        if not all(self._stored.has(chunk.index) for chunk in chunks):
            return None
        self._touch(chunks)
        return self._stored.pread(offset, min(length, self.size - offset)) if chunks else b""

    def prefetch(self, indices: Iterable[int], priority: Priority) -> list[Flight]:
        """Asks for chunks and does not wait; who wants to know looks at the flights."""
        table = self.ref.table
        wanted = [table[index] for index in indices if 0 <= index < len(table)]
        return self._fetcher.request(self._target, wanted, priority)

    def carry(self, indices: Iterable[int], *, within_s: float) -> None:
        """Brings chunks for another node, and waits that long for them."""
        chunks = [self.ref.table[index] for index in indices]
        self._fetcher.carry(self._target, chunks, within_s=within_s)

    def attend(self, indices: Sequence[int], *, within_s: float) -> bool:
        """Waits for chunks that are on their way from the origin, see Fetcher.attend."""
        return self._fetcher.attend(self.ref.digest, indices, within_s=within_s)

    def fill(self) -> None:
        """Fetches the rest in the background, if there is room for it."""
        missing = self.missing
        num_bytes = sum(self.ref.table[index].length for index in missing)
        if self._fetcher.store.has_room(num_bytes):
            self.prefetch(missing, Priority.BACKGROUND)

    @property
    def missing(self) -> list[int]:
        """Indices of the chunks that are not here."""
        return [chunk.index for chunk in self.ref.table if not self._stored.has(chunk.index)]

    def close(self) -> None:
        """What nobody waits for is not fetched any more."""
        self._fetcher.forget(self.ref.digest)
        self._fetcher.store.release(self.ref.digest)

    def _touch(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self._on_touch(self.ref.digest, chunk.index)

    def _likely_next(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """A reader that misses the chunk after its last miss is given twice as much the next time,
        up to _READ_AHEAD_BYTES: a file read from its begin costs few round trips. A read here and
        there is given so little more that it takes no longer.
        """
        with self._lock:
            goes_on = chunks[0].index == self._next_index
            self._ahead = self._ahead * 2 if goes_on else 1
            ahead: list[Chunk] = []
            num_bytes = source_bytes = 0
            for index in range(chunks[-1].index + 1, len(self.ref.table)):
                chunk = self.ref.table[index]
                num_bytes += chunk.length
                source_bytes += chunk.source_length
                follows = goes_on and len(ahead) < self._ahead and num_bytes <= _READ_AHEAD_BYTES
                if not follows and source_bytes > self._least_ahead_bytes:
                    break
                ahead.append(chunk)
            self._next_index = (ahead or chunks)[-1].index + 1
        return ahead

    def _await(self, flights: Sequence[Flight], priority: Priority) -> list[Flight]:
        """Those that landed, once all have; what has no data with it is in the store."""
        give_up_at = time.monotonic() + self._deadline_s
        landed: list[Flight] = []
        failures = 0
        while True:
            for flight in flights:
                self._await_landing(flight, give_up_at)
                if flight.error is None:
                    landed.append(flight)
            failed = [flight for flight in flights if flight.error is not None]
            if not failed:
                return landed
            failures += 1
            delay_s = _BACKOFF.delay_s(failures)
            if time.monotonic() + delay_s >= give_up_at:
                raise self._io_error(failed[0].error)
            _pause(delay_s)
            again = [flight.chunk for flight in failed]
            flights = self._fetcher.request(self._target, again, priority)

    def _await_landing(self, flight: Flight, give_up_at: float) -> None:
        while True:
            now = time.monotonic()
            slow_in_s = self._fetcher.hedge_after_s - (now - (flight.left_at or now))
            if slow_in_s <= 0 or now >= give_up_at:
                break
            if flight.landed.wait(min(slow_in_s, give_up_at - now)):
                return
        self._fetcher.hedge(flight)
        if not flight.landed.wait(max(give_up_at - time.monotonic(), 0)):
            raise self._io_error(TimeoutError("no source answered in time"))

    def _io_error(self, cause: Exception | None) -> OSError:
        detail = cause.detail if isinstance(cause, PlatformError) else str(cause)
        log.warning("blob.read_failed", blob=self.ref.digest, error=detail)
        return OSError(errno.EIO, os.strerror(errno.EIO))

    def _part(self, chunk: Chunk, unkept: dict[int, bytes], offset: int, end: int) -> bytes:
        begin, until = max(chunk.offset, offset), min(chunk.end, end)
        data = unkept.get(chunk.index)
        if data is not None:
            return data[begin - chunk.offset : until - chunk.offset]
        return self._stored.pread(begin, until - begin)


def _pause(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251 - a thread that serves the kernel has nothing else to do
