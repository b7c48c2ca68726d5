"""Chooses what each step computes, within a budget of tokens."""

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator

from worker.engine.batch import Batch, Slice
from worker.engine.block_pool import BlockPool
from worker.engine.fair_share import FairShare
from worker.engine.prefix_cache import Prefix, PrefixCache
from worker.engine.sequence import Sequence
from worker.engine.step_cost import StepCost
from worker.engine.waiting_line import WaitingLine


class Scheduler:
    """Owns every sequence in flight and its blocks.

    Running sequences are in order of priority, then of arrival. A step

    0. preempts what is less urgent than the head of the line, as long as that has no room;
    1. gives each that lacks one token that token. Where blocks run out, the last of those that run
       is preempted: its blocks are freed, and it waits to be computed again;
    2. computes prompts, running or waiting, the most urgent first and of several that of the tenant
       who had least, as long as tokens last. Beside answers there are so few that the step stays
       short, unless more wait than are answering. A sequence is admitted with blocks for all
       tokens it has, those that hold its beginning already among them, and only if those that run
       keep one more block each: else it would soon be preempted. Nobody overtakes a head that has
       no room. While another computes in this step what a sequence would have to compute next, it
       waits for that;
    3. adds drafts while tokens and blocks last, and preempts nobody for them.

    A sequence that fits the pool alone finishes, unless more urgent ones never end. Tenants share
    what is computed of prompts, and the order in which places are given: nobody loses a place to a
    tenant who had less.
    """

    def __init__(
        self,
        pool: BlockPool,
        cache: PrefixCache,
        cost: StepCost,
        *,
        max_running: int,
        token_budget: int,
    ) -> None:
        assert 1 <= max_running <= token_budget
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._pool = pool
        self._cache = cache
        self._cost = cost
        self._max_running = max_running
        self._token_budget = token_budget
        self._num_arrivals = 0
        self._running: list[Sequence] = []
        self._share = FairShare()
        self._waiting = WaitingLine(self._share)
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._free_lanes = list(range(max_running))  # a heap
        self._planned: dict[Sequence, Slice] = {}  # of the step that is being planned
        self._coming: set[bytes] = set()  # names of blocks that it computes a part of

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def sequences(self) -> Iterator[Sequence]:
        """All in flight, those that run first."""
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence in line."""
        sequence.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._share.enter(sequence.tenant)
        self._waiting.add(sequence)
        if sequence.request.deadline is not None:
            insort(self._deadlines, (sequence.request.deadline, sequence.arrival, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, finished or aborted; its blocks are free at once."""
        if sequence.lane is None:
            self._waiting.remove(sequence)
        else:
            del self._running[self._place(sequence)]
            self._release(sequence)
        self._share.leave(sequence.tenant)
        if sequence.request.deadline is not None:
            entry = (sequence.request.deadline, sequence.arrival)
            del self._deadlines[bisect_left(self._deadlines, entry)]

    def expired(self, *, now: float) -> list[Sequence]:
        """Those whose deadline has come; the caller removes them."""
        end = bisect_left(self._deadlines, (now, self._num_arrivals))
        return [sequence for _, _, sequence in self._deadlines[:end]]

    def schedule(self) -> Batch:
        """The next step's batch; empty only when nothing is in flight."""
        self._planned.clear()
        self._coming.clear()
        self._make_way()
        self._plan_answers()
        behind = [each for each in self._running if each not in self._planned]
        budget = self._token_budget - len(self._planned)
        if self._planned:
            num_waiting = self._num_held_up(behind)
            most = self._cost.prompt_tokens(len(self._planned), num_waiting=num_waiting)
            budget = min(budget, most)
        budget = self._plan_prompts(behind, budget)
        self._plan_drafts(budget)
        planned = self._planned
        return Batch(tuple(planned[each] for each in self._running if each in planned))

    def computed(self, batch: Batch) -> None:
        """Records that the keys and values of a batch's known tokens are in the cache."""
        for piece in batch.slices:
            self._advance(piece.sequence, piece.num_known)

    def accepted(self, sequence: Sequence, count: int) -> None:
        """Records that the first `count` drafts of the last step are now tokens of the sequence.

        Called after `computed`, when they and the token after them have been appended. What was
        computed of wrong drafts is overwritten by what comes in their place.
        """
        assert sequence.num_computed_tokens + count < sequence.num_tokens
        self._advance(sequence, count)
        sequence.set_drafts([])

    def check_integrity(self) -> None:
        """Asserts that blocks, lanes, lists and counts agree."""
        self._pool.check_integrity(sequence.block_table for sequence in self.sequences())
        lanes = [sequence.lane for sequence in self._running if sequence.lane is not None]
        assert len(lanes) == len(self._running)
        assert sorted(lanes + self._free_lanes) == list(range(self._max_running))
        assert self._running == sorted(self._running, key=Sequence.rank)
        for sequence in self._running:
            assert self._pool.blocks_for(sequence.num_computed_tokens) <= len(sequence.block_table)
        for sequence in self._waiting:
            assert sequence.lane is None and not sequence.block_table
            assert sequence.num_computed_tokens == 0
        self._share.check_integrity(Counter(each.tenant for each in self.sequences()))
        timed = {each for each in self.sequences() if each.request.deadline is not None}
        assert {each for _, _, each in self._deadlines} == timed

    # Planning -----------------------------------------------------------------------------

    def _make_way(self) -> None:
        head = self._waiting.head()
        while head is not None and self._running and self._running[-1].priority > head.priority:
            if self._has_room(head, self._cache.find(head)):
                return
            self._preempt_last()

    def _plan_answers(self) -> None:
        place = 0
        while place < len(self._running):
            sequence = self._running[place]
            if sequence.num_uncomputed_tokens == 1:
                if not self._grow(sequence):
                    return
                self._plan(sequence, 1)
            place += 1

    def _num_held_up(self, behind: list[Sequence]) -> int:
        """Sequences that need much computed, have a place, and are as urgent as any answer.

        Of a tenant that had more than one who is answered none counts: it holds up the other.
        """
        claim = min(map(self._waiting.claim, self._planned))
        waiting = min(self._waiting.num_claiming(claim), len(self._free_lanes))
        if waiting:
            head = self._waiting.head()
            assert head is not None
            # Where the head has no room, nobody who waits would gain.
            waiting *= self._has_room(head, self._cache.find(head))
        return waiting + sum(self._waiting.claim(each) <= claim for each in behind)

    def _plan_prompts(self, behind: list[Sequence], budget: int) -> int:
        """Of the running ones `behind` and of those that wait; what is left of the budget."""
        held = []
        may_admit = True
        while budget:
            head = self._waiting.head() if may_admit else None
            candidates = behind if head is None else [*behind, head]
            if not candidates:
                break
            sequence = min(candidates, key=self._waiting.turn)
            if sequence.lane is not None:
                behind.remove(sequence)
            else:
                prefix = self._cache.find(sequence)
                if prefix.wanted in self._coming:
                    self._waiting.remove(sequence)
                    held.append(sequence)
                    continue
                if not self._has_room(sequence, prefix):
                    may_admit = False
                    continue
                self._admit(sequence, prefix)
            count = min(sequence.num_uncomputed_tokens, budget)
            self._plan(sequence, count)
            budget -= count
        for sequence in held:
            self._waiting.add(sequence)
        return budget

    def _plan_drafts(self, budget: int) -> None:
        for sequence, piece in self._planned.items():
            if not sequence.num_drafts_wanted or not piece.catches_up:
                continue
            wanted = min(sequence.num_drafts_wanted, budget, sequence.num_tokens_to_come - 1)
            count = min(wanted, self._places_for_drafts(sequence, wanted))
            if count > 0:
                self._plan(sequence, piece.count + count, num_drafts=count)
                budget -= count

    def _plan(self, sequence: Sequence, count: int, *, num_drafts: int = 0) -> None:
        first = sequence.num_computed_tokens
        self._planned[sequence] = Slice(sequence, first, count, num_drafts)
        self._share.charge(sequence.tenant, num_drafts or count)
        size = self._pool.block_size
        names = self._cache.names(sequence)
        self._coming.update(names[first // size : self._pool.blocks_for(first + count)])

    # Blocks and lanes ---------------------------------------------------------------------

    def _grow(self, sequence: Sequence) -> bool:
        """Gives a running sequence blocks for its tokens; False: it was preempted."""
        missing = self._pool.blocks_for(sequence.num_tokens) - len(sequence.block_table)
        while self._pool.free_blocks < missing:
            if self._preempt_last() is sequence:
                return False
        self._append_blocks(sequence, missing)
        return True

    def _places_for_drafts(self, sequence: Sequence, count: int) -> int:
        """Appends blocks for drafts, if each that runs keeps one; how many have room."""
        missing = self._pool.blocks_for(sequence.num_tokens + count) - len(sequence.block_table)
        spare = self._pool.free_blocks - len(self._running)
        self._append_blocks(sequence, min(missing, spare))
        return len(sequence.block_table) * self._pool.block_size - sequence.num_tokens

    def _append_blocks(self, sequence: Sequence, count: int) -> None:
        if count > 0:
            blocks = self._pool.allocate(count, near=sequence.block_table[-1] + 1)
            assert blocks is not None
            sequence.block_table += blocks

    def _has_room(self, sequence: Sequence, prefix: Prefix) -> bool:
        missing = self._pool.blocks_for(sequence.num_tokens) - len(prefix.blocks)
        revived = sum(map(self._pool.is_free, prefix.blocks))
        room = self._pool.free_blocks - len(self._running)
        return bool(self._free_lanes) and revived + missing <= room

    def _admit(self, sequence: Sequence, prefix: Prefix) -> None:
        lane = heapq.heappop(self._free_lanes)
        self._pool.share(prefix.blocks)
        missing = self._pool.blocks_for(sequence.num_tokens) - len(prefix.blocks)
        near = prefix.blocks[-1] + 1 if prefix.blocks else self._home(lane)
        blocks = self._pool.allocate(missing, near=near)
        assert blocks is not None
        sequence.lane, sequence.block_table = lane, prefix.blocks + blocks
        sequence.num_computed_tokens = len(prefix.blocks) * self._pool.block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        self.num_prefix_queries += bool(sequence.block_names)
        self.num_prefix_hits += bool(prefix.blocks)
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=Sequence.rank)

    def _preempt_last(self) -> Sequence:
        sequence = self._running.pop()
        self._release(sequence)
        sequence.num_computed_tokens = 0
        sequence.set_drafts([])
        self._waiting.add(sequence)
        self.num_preemptions += 1
        return sequence

    def _release(self, sequence: Sequence) -> None:
        assert sequence.lane is not None
        self._pool.free(sequence.block_table)
        heapq.heappush(self._free_lanes, sequence.lane)
        sequence.block_table, sequence.lane = [], None

    def _advance(self, sequence: Sequence, count: int) -> None:
        before = sequence.num_computed_tokens
        sequence.num_computed_tokens += count
        self._cache.keep(sequence, num_computed_before=before)

    def _place(self, sequence: Sequence) -> int:
        place = bisect_left(self._running, sequence.rank(), key=Sequence.rank)
        assert self._running[place] is sequence
        return place

    def _home(self, lane: int) -> int:
        """Where a lane's sequence starts: far apart, so that each can grow in one piece."""
        return lane * self._pool.total_blocks // self._max_running
