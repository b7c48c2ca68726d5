"""Brings pinned files into memory, chunk by chunk, with a few threads and some patience."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from infra.clock import Clock
from infra.contracts.revision import SourceFile
from infra.errors import SourceUnavailable, WeightsDamaged, WeightsUnavailable
from infra.sources.chunks import Chunk, ChunkBoard, Task, plan_chunks
from infra.sources.partial import PartialFile
from infra.sources.piece_digests import PieceDigests, digests_of
from infra.sources.port import UNREACHED, OnProgress, RangeReader, Remote
from infra.sources.proof import Proof

READERS: Final = 4
_LOOK_S: Final = 0.25  # how often those who wait look for readers that take too long
_REPAID: Final = 0.1


class OnArrival(Protocol):
    def __call__(self, chunk: Chunk, memory: memoryview, digests: bytes, *, is_new: bool) -> None:
        """In the thread that brought it: from the source where it `is_new`, else from the disk.

        `digests` are those of its pieces where it is proven.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Arriving:
    """One file: where its bytes go, what of it is on disk, and what its pieces have to be."""

    file: SourceFile
    memory: memoryview
    partial: PartialFile
    known: PieceDigests
    is_mapped: bool  # the memory is the file on disk

    def place(self, chunk: Chunk) -> memoryview:
        return self.memory[chunk.offset : chunk.stop]


class Download:
    """Any number of files at once. `on_arrival` hears of each chunk that came.

    A chunk whose pieces' digests are known has arrived when it is proven. Of others the file is
    proven when all of it is here: `wait` lets its bytes be used before, and only `finish` says
    that they may be served. Digests that the source contradicts twice with the same bytes are not
    believed, where the whole file can be proven instead.
    """

    def __init__(
        self,
        uri: str,
        files: Sequence[Arriving],
        remote: Remote,
        clock: Clock,
        on_progress: OnProgress,
        on_arrival: OnArrival,
    ) -> None:
        self._uri = uri
        self._files = files
        self._remote = remote
        self._patience = remote.patience
        self._clock = clock
        self._on_progress = on_progress
        self._on_arrival = on_arrival
        chunks = plan_chunks([arriving.file.size for arriving in files])
        self._proofs = [
            Proof(
                arriving.file,
                [chunk for chunk in chunks if chunk.file == index],
                arriving.memory,
                arriving.known,
            )
            for index, arriving in enumerate(files)
        ]
        self._total = max(1, sum(arriving.file.size for arriving in files))
        # The condition's lock guards everything below.
        self._changed = threading.Condition()
        self._board = ChunkBoard(chunks, hedge_s=remote.patience.hedge_s)
        self._arrived_bytes = 0
        self._fetched_bytes = 0
        self._budget = remote.patience.failures
        self._attempts: dict[RangeReader, tuple[Chunk, float]] = {}  # since when it reads what
        self._rescued: dict[int, memoryview] = {}  # chunks that a hedge brought first
        self._end: BaseException | None = None
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._read, name=f"download-{number}", daemon=True)
            for number in range(min(READERS, len(chunks)))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def fetched_bytes(self) -> int:
        """Bytes that came from the source, and not from what was on disk already."""
        with self._changed:
            return self._fetched_bytes

    def wait(self, file: int, start: int, stop: int) -> None:
        """Returns when these bytes are here. Raises what ended the download."""
        with self._changed:
            if not self._board.has(file, start, stop):
                self._board.want(file, start, stop)
            while not self._board.has(file, start, stop):
                self._raise_if_over()
                self._look_around()

    def finish(self) -> None:
        """Returns when every file is here and proven. Raises what ended the download.

        WeightsDamaged where only all bytes together show that some are wrong: which, nobody knows.
        """
        with self._changed:
            while not (self._board.is_over and all(it.is_over for it in self._proofs)):
                self._raise_if_over()
                self._look_around()
        damaged = self.damaged()
        for arriving in damaged:
            self._remote.on_damage(arriving.file)
        if damaged:
            name = damaged[0].file.path
            raise WeightsDamaged(
                f"{name} arrived damaged",
                hint="the next start reads it again; where the source has changed, deploy again",
                path=name,
            )

    def damaged(self) -> list[Arriving]:
        """The files that are here, all of them, and not what was pinned."""
        files = zip(self._files, self._proofs, strict=True)
        return [it for it, proof in files if proof.is_over and not proof.succeeded]

    def close(self) -> None:
        """Ends every thread, whatever it is doing; nothing writes into the memory afterwards."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            while thread.is_alive():
                with self._changed:
                    for reader in self._attempts:
                        reader.interrupt()
                thread.join(0.02)

    def _raise_if_over(self) -> None:
        if self._end is not None:
            raise self._end
        if self._is_closed:
            raise WeightsUnavailable(f"the download of {self._uri} was given up")

    def _look_around(self) -> None:
        """Breaks off attempts that take too long, and waits for a change."""
        now = self._clock.now()
        for reader, (chunk, since) in self._attempts.items():
            if now - since > self._patience.attempt_s(chunk.length):
                reader.interrupt()
        self._changed.wait(_LOOK_S)

    def _read(self) -> None:
        """The life of one thread."""
        reader = self._remote.open_reader()
        try:
            while (task := self._next()) is not None:
                if task.is_hedge:
                    self._hedge(task.chunk, reader)
                else:
                    self._bring(task.chunk, reader)
        except BaseException as error:
            with self._changed:
                self._end = self._end or error
                self._changed.notify_all()
        finally:
            reader.close()

    def _next(self) -> Task | None:
        with self._changed:
            while not (self._is_over or self._board.is_over):
                task = self._board.next(self._clock.now())
                if task is not None:
                    return task
                self._look_around()
        return None

    @property
    def _is_over(self) -> bool:
        return self._is_closed or self._end is not None

    def _bring(self, chunk: Chunk, reader: RangeReader) -> None:
        """One chunk, from the disk if it was there; tries again within the budget."""
        arriving, proof = self._files[chunk.file], self._proofs[chunk.file]
        memory = arriving.place(chunk)
        known = proof.known.of_chunk(chunk)
        if arriving.partial.load(chunk, memory, known, is_mapped=arriving.is_mapped):
            self._on_arrival(chunk, memory, known, is_new=False)
            self._arrived(chunk, fetched=0)
            return
        got = failures = 0
        wrong = b""
        while True:
            found = self._attempt(chunk, reader, got, memory)
            if isinstance(found, int):
                got += found
                if got == chunk.length:
                    if proof.is_right(chunk, memory):
                        break
                    before, wrong = wrong, digests_of(memory)
                    if before == wrong and proof.doubt_digests():
                        break
            if self._take_rescue(chunk, memory):
                break
            if self._is_over:
                return
            failures += 1
            what = found if isinstance(found, SourceUnavailable) else None
            if got == chunk.length:
                got, what = 0, SourceUnavailable(f"{arriving.file.path} arrived damaged")
            self._put_up_with(chunk, failures, what)
        self._on_arrival(chunk, memory, proof.known.of_chunk(chunk), is_new=True)
        self._arrived(chunk, fetched=chunk.length)

    def _attempt(
        self, chunk: Chunk, reader: RangeReader, got: int, memory: memoryview
    ) -> int | SourceUnavailable:
        """Bytes of the rest of the chunk that came, or why none did."""
        try:
            with self._reading(chunk, reader):
                return reader.read_into(
                    self._files[chunk.file].file, chunk.offset + got, memory[got:]
                )
        except SourceUnavailable as error:
            return error

    def _put_up_with(self, chunk: Chunk, failures: int, what: SourceUnavailable | None) -> None:
        """Waits before the next attempt; raises WeightsUnavailable where there is none."""
        file = self._files[chunk.file].file
        why = what.detail if what is not None else f"the line broke within {file.path}"
        with self._changed:
            self._budget -= 1
            if failures >= self._patience.attempts or self._budget < 0:
                raise WeightsUnavailable(
                    f"cannot download {self._uri}: {why}",
                    hint=(None if what is None else what.hint) or UNREACHED,
                    path=file.path,
                    attempts=failures,
                )
            delay_s = self._patience.backoff.delay_s(failures, jitter=random.random())
            if what is not None and "retry_after_s" in what.facts:
                delay_s = max(delay_s, what.facts["retry_after_s"])
            self._changed.wait_for(lambda: self._is_over or chunk.index in self._rescued, delay_s)

    def _hedge(self, chunk: Chunk, reader: RangeReader) -> None:
        """A second attempt, beside the first; whichever is whole first is taken."""
        memory = memoryview(bytearray(chunk.length))
        found = self._attempt(chunk, reader, 0, memory)
        is_whole = found == chunk.length and self._proofs[chunk.file].is_right(chunk, memory)
        with self._changed:
            if self._board.is_here(chunk):
                return
            if not is_whole:
                self._board.hedge_failed(chunk)
                return
            self._rescued[chunk.index] = memory
            self._interrupt_readers_of(chunk)
            self._changed.notify_all()

    def _take_rescue(self, chunk: Chunk, memory: memoryview) -> bool:
        with self._changed:
            rescued = self._rescued.pop(chunk.index, None)
        if rescued is None:
            return False
        memory[:] = rescued
        return True

    def _arrived(self, chunk: Chunk, *, fetched: int) -> None:
        with self._changed:
            self._rescued.pop(chunk.index, None)
            self._board.arrived(chunk, self._clock.now())
            self._interrupt_readers_of(chunk)
            self._arrived_bytes += chunk.length
            self._fetched_bytes += fetched
            self._budget = min(self._patience.failures, self._budget + _REPAID)
            self._on_progress(self._arrived_bytes / self._total)  # in order, so under the lock
            self._changed.notify_all()
        proof = self._proofs[chunk.file]
        proof.add(chunk)
        if proof.is_over:
            with self._changed:
                self._changed.notify_all()

    def _interrupt_readers_of(self, chunk: Chunk) -> None:
        for reader, (read, _) in self._attempts.items():
            if read.index == chunk.index:
                reader.interrupt()

    @contextmanager
    def _reading(self, chunk: Chunk, reader: RangeReader) -> Iterator[None]:
        with self._changed:
            self._attempts[reader] = (chunk, self._clock.now())
        try:
            yield
        finally:
            with self._changed:
                del self._attempts[reader]
