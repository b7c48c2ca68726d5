"""Brings chunks into the store: single flight, by priority, from the first source that is right."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition, Thread
from typing import Final

import structlog

from infra.errors import ShuttingDown, SourceUnavailable
from snapshotter.blob.flight import Agenda, Flight, Priority, Target, stretches
from snapshotter.blob.source import ChunkSource
from snapshotter.blob.store import ChunkStore
from snapshotter.index.chunk_table import Chunk

log = structlog.get_logger()

_LEAST_HEDGE_S: Final = 0.1
_FIRST_HEDGE_S: Final = 1.0
_NUM_SAMPLES: Final = 64
_HEDGES_PER_CHUNK: Final = 1 / 32  # so an origin that is slow for all is not asked for all twice
_MOST_HEDGES: Final = 4.0  # at once, after many chunks without one
_MOST_CARRIED: Final = 64  # requests at once for other nodes


class Fetcher:
    """One per node. Two workers are kept for demand; background fetching is throttled and waits
    while anybody waits for a read.
    """

    def __init__(
        self,
        store: ChunkStore,
        *,
        num_workers: int = 8,
        background_bytes_per_s: float = 25e6,
    ) -> None:
        self.store = store
        self.fetched_bytes: Counter[str] = Counter()  # of chunks, by the source's name
        self.num_corrupt = 0
        self._num_workers = num_workers
        self._background_bytes_per_s = background_bytes_per_s
        self._background_at = 0.0
        self._condition = Condition()  # guards everything below
        self._agenda = Agenda()
        self._hedges: deque[Flight] = deque()
        self._hedges_left = 1.0
        self._flights: dict[tuple[str, int], Flight] = {}
        self._under_way: Counter[Priority] = Counter()
        self._durations_s: deque[float] = deque(maxlen=_NUM_SAMPLES)
        self._is_closed = False
        self._threads = [
            Thread(target=self._work, name=f"fetch-{number}", daemon=True)
            for number in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()
        self._carriers = ThreadPoolExecutor(_MOST_CARRIED, thread_name_prefix="carry")

    def request(
        self,
        target: Target,
        chunks: Sequence[Chunk],
        priority: Priority,
        *,
        ahead: Sequence[Chunk] = (),
    ) -> list[Flight]:
        """Flights of those chunks that are not here, joined where they are on their way.

        What is `ahead` somebody is likely to want next: it goes along, or afterwards.
        """
        missing = self._missing(target, chunks)
        if not missing:
            return []
        later = self._missing(target, ahead)
        with self._condition:
            if self._is_closed:
                raise ShuttingDown("the fetcher is closed")
            flights = [self._join(target, chunk, priority) for chunk in missing]
            for chunk in later:
                self._join(target, chunk, Priority.TRACE)
            self._condition.notify(len(missing) + len(later))
        return flights

    def _missing(self, target: Target, chunks: Sequence[Chunk]) -> list[Chunk]:
        return [chunk for chunk in chunks if not self.store.has(target.ref.digest, chunk.index)]

    def carry(self, target: Target, chunks: Sequence[Chunk], *, within_s: float) -> None:
        """Brings chunks for other nodes, as far as no worker is at it, and beside the workers:
        those that wait for one another's nodes would wait for ever.

        What has not landed after `within_s` is not waited for, and comes nonetheless.
        """
        missing = self._missing(target, chunks)
        give_up_at = time.monotonic() + within_s
        with self._condition:
            if self._is_closed:
                return
            flights = [self._join(target, chunk, Priority.DEMAND) for chunk in missing]
            run = self._agenda.claim(flights)
            if run:
                self._carriers.submit(self._take, run, 0)
        for flight in flights:
            if not flight.landed.wait(max(give_up_at - time.monotonic(), 0)):
                return

    def _join(self, target: Target, chunk: Chunk, priority: Priority) -> Flight:
        flight = self._flights.get((target.ref.digest, chunk.index))
        if flight is None:
            flight = Flight(target, chunk, priority)
            self._flights[flight.key] = flight
            self._agenda.add(flight)
        else:
            self._agenda.urge(flight, priority)
        return flight

    def forget(self, digest: str) -> None:
        """What was to be fetched of a blob ahead of demand is not fetched."""
        with self._condition:
            for flight in self._agenda.drop(digest):
                self._end(flight, error=ShuttingDown("the blob was closed"))

    def attend(self, digest: str, indices: Sequence[int], *, within_s: float) -> bool:
        """Waits for one chunk after the other, as far as this node has asked the origin for them;
        whether the one that it waits for last still comes.

        For other nodes. What is asked of another node is not waited for: it might wait for us.
        """
        give_up_at = time.monotonic() + within_s
        for index in indices:
            with self._condition:
                flight = self._flights.get((digest, index))
            if flight is None and self.store.has(digest, index):
                continue  # it has landed since
            if flight is None or not (flight.num_at_origin or flight.landed.is_set()):
                return False
            if not flight.landed.wait(max(give_up_at - time.monotonic(), 0)):
                return True
            if flight.error is not None:
                return False
        return False

    def hedge(self, flight: Flight) -> None:
        """A second trip for a chunk that takes long, by the next source; the first to land wins.

        Of few chunks, as far as others came in time.
        """
        with self._condition:
            if flight.landed.is_set() or flight.num_trips > 1 or not flight.has_left:
                return
            if self._hedges_left < 1:
                return
            self._hedges_left -= 1
            flight.num_trips += 1
            self._hedges.append(flight)
            self._condition.notify()

    @property
    def hedge_after_s(self) -> float:
        """A trip that takes longer than this is slow: twice the 95th percentile of late."""
        durations_s = sorted(self._durations_s)
        if len(durations_s) < 8:
            return _FIRST_HEDGE_S
        return max(_LEAST_HEDGE_S, 2 * durations_s[int(0.95 * len(durations_s))])

    def close(self) -> None:
        """Ends the workers after what they are at; what waits fails."""
        with self._condition:
            self._is_closed = True
            for flight in self._agenda.clear():
                self._end(flight, error=ShuttingDown("the fetcher is closed"))
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._carriers.shutdown()

    def _work(self) -> None:
        while True:
            with self._condition:
                run, first_source = self._next_run()
                if not run:
                    return
                priority = run[0].priority
                self._under_way[priority] += 1
            started_at = time.monotonic()
            self._take(run, first_source)
            with self._condition:
                self._under_way[priority] -= 1
                self._durations_s.append(time.monotonic() - started_at)
                if priority is Priority.BACKGROUND:
                    self._throttle(sum(flight.chunk.source_length for flight in run))
                self._condition.notify_all()

    def _next_run(self) -> tuple[list[Flight], int]:
        """Waits for work; the second value is the place of the source to begin with."""
        while not self._is_closed:
            if self._hedges:
                return [self._hedges.popleft()], 1
            run = self._agenda.take(self._allows)
            if run:
                return run, 0
            pause_s = self._background_at - time.monotonic()
            self._condition.wait(pause_s if len(self._agenda) and pause_s > 0 else None)
        return [], 0

    def _allows(self, priority: Priority) -> bool:
        match priority:
            case Priority.DEMAND:
                return True
            case Priority.TRACE:
                reserved = min(2, self._num_workers - 1)
                num_busy = self._under_way[Priority.TRACE] + self._under_way[Priority.BACKGROUND]
                return num_busy < self._num_workers - reserved
            case Priority.BACKGROUND:
                return not self._under_way.total() and time.monotonic() >= self._background_at

    def _throttle(self, num_bytes: int) -> None:
        now = time.monotonic()
        begin = max(self._background_at, now)
        self._background_at = begin + num_bytes / self._background_bytes_per_s

    def _take(self, run: list[Flight], first_source: int) -> None:
        try:
            with self.store.opened(run[0].target.ref):
                self._travel(run, first_source)
        except Exception as error:  # a worker that dies takes the node's reads with it
            log.exception("fetch.failed", blob=run[0].target.ref.digest)
            self._give_up(run, error)

    def _travel(self, run: list[Flight], first_source: int) -> None:
        """One round over the sources for what is not here: they give neighbours only."""
        for stretch in stretches([it for it in run if not self._land_from_here(it)]):
            self._travel_together(stretch, first_source)

    def _travel_together(self, left: list[Flight], first_source: int) -> None:
        """What has not landed in the end fails."""
        target = left[0].target
        error: Exception = SourceUnavailable(f"{target.ref.digest} has no source")
        for number in range(len(target.sources)):
            if not left:
                return
            source = target.sources[(first_source + number) % len(target.sources)]
            travelling = tuple(left)
            self._count_at_origin(travelling, source, 1)
            try:
                for data in source.chunks([flight.chunk for flight in left]):
                    is_first_hand = target.is_origin(source)
                    self._land(left[0], data, source.name, is_first_hand=is_first_hand)
                    del left[0]
            except SourceUnavailable as failure:
                log.info("fetch.source_failed", source=source.name, error=failure.detail)
                error = failure
            finally:
                self._count_at_origin(travelling, source, -1)
        self._give_up(left, error)

    def _count_at_origin(self, flights: Sequence[Flight], source: ChunkSource, change: int) -> None:
        if flights[0].target.is_origin(source):
            with self._condition:
                for flight in flights:
                    flight.num_at_origin += change

    def _land_from_here(self, flight: Flight) -> bool:
        """Whether another blob, or another trip, has brought the same bytes to this node."""
        if flight.landed.is_set():
            return True
        data = self.store.read_chunk(flight.chunk.digest)
        if data is None:
            return False
        self._land(flight, data, "here")
        return True

    def _land(
        self, flight: Flight, data: bytes, source: str, *, is_first_hand: bool = False
    ) -> None:
        ref, chunk = flight.target.ref, flight.chunk
        try:
            is_kept = self.store.put(ref, chunk, data, is_first_hand=is_first_hand)
        except ValueError as error:
            self.num_corrupt += 1
            raise SourceUnavailable(f"{source} gave wrong bytes: {error}") from error
        with self._condition:
            self.fetched_bytes[source] += len(data)
            if not flight.landed.is_set():
                self._hedges_left = min(_MOST_HEDGES, self._hedges_left + _HEDGES_PER_CHUNK)
                flight.data = None if is_kept else data
                flight.came_from = source
                flight.target.on_land(flight)
                self._end(flight)

    def _give_up(self, flights: Sequence[Flight], error: Exception) -> None:
        with self._condition:
            for flight in flights:
                flight.num_trips -= 1
                if not flight.num_trips and not flight.landed.is_set():
                    self._end(flight, error=error)

    def _end(self, flight: Flight, *, error: Exception | None = None) -> None:
        self._flights.pop(flight.key, None)
        flight.error = error
        flight.landed.set()
