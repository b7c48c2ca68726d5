"""A source of chunks that does what a test says, one request at a time."""

from collections.abc import Callable, Iterator, Sequence
from threading import Event, Lock

from infra.errors import SourceUnavailable
from snapshotter.index.chunk_table import Chunk

Act = Callable[[Sequence[Chunk]], Iterator[bytes]]


class ScriptedSource:
    """Gives slices of `data`; each request first consumes one act of the script, if any is left."""

    def __init__(self, data: bytes, script: Sequence[Act] = (), *, name: str = "origin") -> None:
        self.name = name
        self.data = data
        self.requests: list[list[int]] = []
        self._script = list(script)
        self._lock = Lock()

    def chunks(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        with self._lock:
            self.requests.append([chunk.index for chunk in run])
            act = self._script.pop(0) if self._script else self.give
        yield from act(run)

    def give(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        for chunk in run:
            yield self.data[chunk.offset : chunk.end]

    def give_wrong(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        """One flipped bit a chunk."""
        for chunk in run:
            wrong = bytearray(self.data[chunk.offset : chunk.end])
            wrong[len(wrong) // 2] ^= 4
            yield bytes(wrong)

    def fail(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        raise SourceUnavailable("the registry is down")
        yield b""

    def give_one_then_fail(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        yield from self.give(run[:1])
        raise SourceUnavailable("the connection broke")

    def held(self, begun: Event, go_on: Event) -> Act:
        """An act that says when it began and goes on when it is told to."""

        def act(run: Sequence[Chunk]) -> Iterator[bytes]:
            begun.set()
            assert go_on.wait(60)
            yield from self.give(run)

        return act
