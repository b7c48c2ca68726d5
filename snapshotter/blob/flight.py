"""What is to be fetched, and in which order: wanted chunks, grouped into requests. Pure."""

import heapq
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import count, groupby
from threading import Event
from typing import Final

from snapshotter.blob.source import ChunkSource
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.index.chunk_table import Chunk

MOST_RUN_BYTES: Final = 4 << 20  # of the source, per request


class Priority(IntEnum):
    """Smaller goes first."""

    DEMAND = 0  # somebody waits in a read
    TRACE = 1  # somebody will: a recorded start, or a read that goes on
    BACKGROUND = 2  # nobody may ever


def ignore_landing(flight: "Flight") -> None:
    """Nobody counts."""


class Target:
    """A blob that can be fetched: its chunks and where they are, best source first.

    `on_land` hears of each chunk before who waits for it does, and must not wait itself.
    """

    def __init__(
        self,
        ref: BlobRef,
        sources: Sequence[ChunkSource],
        on_land: "OnLand" = ignore_landing,
    ) -> None:
        self.ref = ref
        self.sources = tuple(sources)
        self.on_land = on_land

    def is_origin(self, source: ChunkSource) -> bool:
        """Whether it is the one that asks nobody else."""
        return source is self.sources[-1]


class Flight:
    """One chunk on its way, shared by everybody who wants it."""

    def __init__(self, target: Target, chunk: Chunk, priority: Priority) -> None:
        self.target = target
        self.chunk = chunk
        self.priority = priority
        self.asked_at = time.monotonic()
        self.num_trips = 1  # queued or under way; a hedge is the second
        self.num_at_origin = 0  # of those trips
        self.left_at: float | None = None
        self.landed = Event()
        self.data: bytes | None = None  # only where the store had no room
        self.error: Exception | None = None
        self.came_from: str | None = None  # the source that it landed from

    @property
    def key(self) -> tuple[str, int]:
        return self.target.ref.digest, self.chunk.index

    @property
    def has_left(self) -> bool:
        return self.left_at is not None


OnLand = Callable[[Flight], None]


def stretches(run: Sequence[Flight]) -> list[list[Flight]]:
    """The run, cut where one chunk is not the neighbour of the next."""
    places = groupby(enumerate(run), lambda placed: placed[1].chunk.index - placed[0])
    return [[flight for _, flight in stretch] for _, stretch in places]


class Agenda:
    """Flights that have not left, by priority and then by age. One owner; not thread-safe."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Flight]] = []
        self._waiting: dict[tuple[str, int], Flight] = {}
        self._age = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, flight: Flight) -> None:
        self._waiting[flight.key] = flight
        self._push(flight)

    def urge(self, flight: Flight, priority: Priority) -> None:
        """Somebody with a better priority wants it, too."""
        if priority < flight.priority:
            flight.priority = priority
            if flight.key in self._waiting:
                self._push(flight)

    def take(self, allows: Callable[[Priority], bool]) -> list[Flight]:
        """The next request: the most urgent flight and its waiting neighbours of that priority;
        what somebody waits for takes those after it along that somebody will, as they land later.

        Empty when nothing that is allowed waits. The flights are of one stripe of one target and
        follow one another; together they are at most MOST_RUN_BYTES of the source, or one chunk.
        """
        self._drop_stale()
        if not self._heap or not allows(Priority(self._heap[0][0])):
            return []
        _, _, first = heapq.heappop(self._heap)
        run = [self._leave(first)]
        num_bytes = first.chunk.source_length
        for step in (1, -1):
            index = first.chunk.index
            while True:
                index += step
                neighbour = self._waiting.get((first.target.ref.digest, index))
                if neighbour is None or not _goes_with(neighbour, first, step):
                    break
                if neighbour.chunk.stripe != first.chunk.stripe:
                    break
                num_bytes += neighbour.chunk.source_length
                if num_bytes > MOST_RUN_BYTES:
                    return run
                run.insert(len(run) if step > 0 else 0, self._leave(neighbour))
        return run

    def claim(self, flights: Sequence[Flight]) -> list[Flight]:
        """Takes those of `flights` that have not left, for whoever carries them itself."""
        return [self._leave(flight) for flight in flights if not flight.has_left]

    def drop(self, digest: str) -> list[Flight]:
        """Takes those of a blob that nobody waits for."""
        unwanted = [
            flight
            for flight in self._waiting.values()
            if flight.target.ref.digest == digest and flight.priority is not Priority.DEMAND
        ]
        for flight in unwanted:
            del self._waiting[flight.key]
        return unwanted

    def clear(self) -> list[Flight]:
        """Takes everything."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._heap.clear()
        return waiting

    def _push(self, flight: Flight) -> None:
        heapq.heappush(self._heap, (flight.priority, next(self._age), flight))

    def _leave(self, flight: Flight) -> Flight:
        del self._waiting[flight.key]
        flight.left_at = time.monotonic()
        return flight

    def _drop_stale(self) -> None:
        while self._heap:
            priority, _, flight = self._heap[0]
            if self._waiting.get(flight.key) is flight and flight.priority == priority:
                return
            heapq.heappop(self._heap)


def _goes_with(neighbour: Flight, first: Flight, step: int) -> bool:
    if neighbour.priority == first.priority:
        return True
    return step > 0 and (first.priority, neighbour.priority) == (Priority.DEMAND, Priority.TRACE)
