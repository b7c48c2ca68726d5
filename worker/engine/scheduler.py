"""Chooses what each step computes: first come first served, within a budget of tokens."""

from collections import deque
from collections.abc import Iterator

from worker.engine.batch import Batch, Slice
from worker.engine.block_pool import BlockPool
from worker.engine.prefix_cache import PrefixCache
from worker.engine.sequence import Sequence


class Scheduler:
    """Owns every sequence in flight and its blocks.

    Running sequences are older than waiting ones; both lists are in order of arrival. A step

    1. gives every running sequence what it lacks, oldest first, keeping one token of the budget
       for each that comes after, so that none stands still while another's prompt is computed;
    2. where blocks run out, preempts the youngest: its blocks are freed, and it waits to be
       computed again;
    3. admits from the head of the queue while tokens, places and blocks last. A sequence is
       admitted with blocks for all tokens it has, those that hold its beginning already among
       them, and only if those that run keep one more block each: else it would soon be preempted.
       While another computes in this step what it would have to compute next, it waits for that.

    A sequence that fits the pool alone always finishes; callers refuse others beforehand.
    """

    def __init__(
        self, pool: BlockPool, cache: PrefixCache, *, max_running: int, token_budget: int
    ) -> None:
        assert 1 <= max_running <= token_budget
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._pool = pool
        self._cache = cache
        self._max_running = max_running
        self._token_budget = token_budget
        self._coming: set[bytes] = set()  # names of blocks that this step computes a part of
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def sequences(self) -> Iterator[Sequence]:
        """All in flight, oldest first."""
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at the end of the queue."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, finished or aborted; its blocks are free at once."""
        if sequence.lane is None:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._release(sequence)

    def schedule(self) -> Batch:
        """The next step's batch; empty only when nothing is in flight."""
        slices: list[Slice] = []
        self._coming.clear()
        budget = self._token_budget
        while len(slices) < len(self._running):
            sequence = self._running[len(slices)]
            behind = len(self._running) - len(slices) - 1
            count = min(sequence.num_uncomputed_tokens, budget - behind)
            if not self._grow(sequence, sequence.num_computed_tokens + count):
                break
            slices.append(self._slice(sequence, count))
            budget -= count
        while budget and self._admit():
            sequence = self._running[-1]
            count = min(sequence.num_uncomputed_tokens, budget)
            slices.append(self._slice(sequence, count))
            budget -= count
        return Batch(tuple(slices))

    def computed(self, batch: Batch) -> None:
        """Records that a batch's keys and values are in the cache."""
        for piece in batch.slices:
            piece.sequence.num_computed_tokens += piece.count
            self._cache.keep(piece.sequence, num_computed_before=piece.first)

    def check_integrity(self) -> None:
        """Asserts that blocks, lanes and lists agree."""
        self._pool.check_integrity(sequence.block_table for sequence in self.sequences())
        lanes = [sequence.lane for sequence in self._running]
        assert None not in lanes and len(set(lanes)) == len(lanes)
        assert len(self._running) <= self._max_running
        for sequence in self._running:
            assert self._pool.blocks_for(sequence.num_computed_tokens) <= len(sequence.block_table)
        for sequence in self._waiting:
            assert sequence.lane is None and not sequence.block_table
            assert sequence.num_computed_tokens == 0

    def _slice(self, sequence: Sequence, count: int) -> Slice:
        first = sequence.num_computed_tokens
        size = self._pool.block_size
        names = self._cache.names(sequence)
        self._coming.update(names[first // size : self._pool.blocks_for(first + count)])
        return Slice(sequence, first, count)

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives a running sequence blocks for its first `num_tokens`; False: it was preempted."""
        missing = self._pool.blocks_for(num_tokens) - len(sequence.block_table)
        if missing <= 0:
            return True
        while self._pool.free_blocks < missing:
            if self._preempt_youngest() is sequence:
                return False
        blocks = self._pool.allocate(missing, near=sequence.block_table[-1] + 1)
        assert blocks is not None
        sequence.block_table += blocks
        return True

    def _preempt_youngest(self) -> Sequence:
        sequence = self._running.pop()
        self._release(sequence)
        sequence.num_computed_tokens = 0
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1
        return sequence

    def _admit(self) -> bool:
        """Moves the head of the queue to the running ones, if it may."""
        if not self._waiting or len(self._running) == self._max_running:
            return False
        sequence = self._waiting[0]
        prefix = self._cache.find(sequence)
        if prefix.wanted in self._coming:
            return False
        missing = self._pool.blocks_for(sequence.num_tokens) - len(prefix.blocks)
        revived = sum(map(self._pool.is_free, prefix.blocks))
        if self._pool.free_blocks < revived + missing + len(self._running):
            return False
        lane = self._lowest_free_lane()
        self._pool.share(prefix.blocks)
        near = prefix.blocks[-1] + 1 if prefix.blocks else self._home(lane)
        blocks = self._pool.allocate(missing, near=near)
        assert blocks is not None
        sequence.lane, sequence.block_table = lane, prefix.blocks + blocks
        self._skip(sequence, len(prefix.blocks) * self._pool.block_size)
        self._running.append(self._waiting.popleft())
        return True

    def _skip(self, sequence: Sequence, num_tokens: int) -> None:
        """Counts what an admitted sequence found in the cache."""
        sequence.num_computed_tokens = num_tokens
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = num_tokens
        self.num_prefix_queries += bool(sequence.block_names)
        self.num_prefix_hits += num_tokens > 0

    def _release(self, sequence: Sequence) -> None:
        self._pool.free(sequence.block_table)
        sequence.block_table, sequence.lane = [], None

    def _lowest_free_lane(self) -> int:
        taken = {sequence.lane for sequence in self._running}
        return next(lane for lane in range(self._max_running) if lane not in taken)

    def _home(self, lane: int) -> int:
        """Where a lane's sequence starts: far apart, so that each can grow in one piece."""
        return lane * self._pool.total_blocks // self._max_running
