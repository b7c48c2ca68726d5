"""What was computed once is found again, by whom it may be, and never wrongly."""

import random
from collections.abc import Sequence as Tokens

import pytest

from worker.engine.batch import Slice
from worker.engine.block_pool import BlockPool
from worker.engine.prefix_cache import PrefixCache
from worker.engine.request import GenerationRequest, SamplingParams
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.step_cost import StepCost

SIZE = 4


def sequence(
    prompt: Tokens[int],
    *,
    tenant: str = "",
    priority: int = 0,
    max_tokens: int = 1000,
    prompt_logprobs: int | None = None,
) -> Sequence:
    sampling = SamplingParams(max_tokens, prompt_logprobs=prompt_logprobs)
    asked = GenerationRequest("r", tuple(prompt), sampling, priority=priority, tenant=tenant)
    return Sequence(asked, seed=0)


def answer(token_ids: Tokens[int]) -> int:
    return sum(token_ids) % 5


class Driver:
    """A scheduler with a model that answers with the sum of what it reads, modulo 5.

    Remembers which tokens each block's places hold, and checks that what is taken for computed is.
    Keeps the drafts that are right.
    """

    def __init__(self, *, blocks: int = 32, max_running: int = 4, token_budget: int = 16) -> None:
        self.pool = BlockPool(blocks, block_size=SIZE)
        self.scheduler = Scheduler(
            self.pool,
            PrefixCache(self.pool),
            StepCost(),
            max_running=max_running,
            token_budget=token_budget,
        )
        self.held: dict[int, int] = {}  # token by place

    def add(self, prompt: Tokens[int], **options: object) -> Sequence:
        added = sequence(prompt, **options)  # type: ignore[arg-type]
        self.scheduler.add(added)
        return added

    def step(self) -> list[tuple[Sequence, int, int]]:
        batch = self.scheduler.schedule()
        for piece in batch.slices:
            places = range(piece.first, piece.first + piece.count)
            for position, token in zip(places, piece.token_ids, strict=True):
                self.held[self._place(piece.sequence, position)] = token
        sampled = batch.sampled
        self.scheduler.computed(batch)
        for piece in sampled:
            self._verify(piece)
        for each in self.scheduler.sequences():
            computed = range(each.num_computed_tokens)
            held = [self.held[self._place(each, position)] for position in computed]
            assert held == each.token_ids[: each.num_computed_tokens]
        self.scheduler.check_integrity()
        return [(piece.sequence, piece.first, piece.count) for piece in batch.slices]

    def _verify(self, piece: Slice) -> None:
        assert len(piece.sampled) == 1 + piece.num_drafts
        token_ids, accepted = piece.sequence.token_ids, 0
        for draft in piece.sequence.draft_token_ids[: piece.num_drafts]:
            if draft != answer(token_ids):
                break
            token_ids.append(draft)
            accepted += 1
        token_ids.append(answer(token_ids))
        self.scheduler.accepted(piece.sequence, accepted)

    def finish(self, *sequences: Sequence) -> None:
        for each in sequences:
            self.scheduler.remove(each)
            self.scheduler.check_integrity()

    def _place(self, each: Sequence, position: int) -> int:
        return each.block_table[position // SIZE] * SIZE + position % SIZE


def test_a_prompt_is_found_again_but_for_its_last_token() -> None:
    driver = Driver()
    first = driver.add(range(12))
    driver.step()
    driver.finish(first)

    again, longer = driver.add(range(12)), driver.add(range(14))

    assert driver.step() == [(again, 8, 4), (longer, 12, 2)]
    assert again.block_table[:2] == longer.block_table[:2] == [0, 1]
    assert (again.num_cached_tokens, longer.num_cached_tokens) == (8, 12)
    assert (driver.scheduler.num_prefix_queries, driver.scheduler.num_prefix_hits) == (3, 2)


def test_running_sequences_share_blocks_that_are_full() -> None:
    driver = Driver()
    first = driver.add([*range(8), 9])
    driver.step()
    second = driver.add([*range(8), 10, 11])
    assert driver.step() == [(first, 9, 1), (second, 8, 2)]
    assert (first.block_table, second.block_table) == ([0, 1, 2], [0, 1, 3])
    driver.finish(first)
    assert driver.step() == [(second, 10, 1)]


def test_answers_are_found_when_the_talk_goes_on() -> None:
    driver = Driver()
    first = driver.add(range(6))
    for _ in range(8):
        driver.step()
    text = list(first.token_ids)
    driver.finish(first)

    following = driver.add([*text, 1, 2, 3])

    assert driver.step() == [(following, 12, len(text) + 3 - 12)]


def test_choices_of_one_prompt_wait_for_the_first_and_share_what_it_computes() -> None:
    driver = Driver(token_budget=8)
    choices = [driver.add(range(17)) for _ in range(3)]
    first, second, third = choices
    assert driver.step() == [(first, 0, 8)]
    assert driver.step() == [(first, 8, 8)]
    assert driver.step() == [(first, 16, 1), (second, 16, 1), (third, 16, 1)]
    assert [each.block_table[:4] for each in choices] == [[0, 1, 2, 3]] * 3
    assert len({each.block_table[4] for each in choices}) == 3


def test_nobody_waits_for_one_who_has_left() -> None:
    driver = Driver(token_budget=8)
    first, second = driver.add(range(17)), driver.add(range(17))
    assert driver.step() == [(first, 0, 8)]
    driver.finish(first)
    assert driver.step() == [(second, 8, 8)]


def test_tenants_find_only_their_own() -> None:
    driver = Driver()
    first = driver.add(range(12), tenant="a")
    driver.step()
    other, own = driver.add(range(12), tenant="b"), driver.add(range(12), tenant="a")
    assert driver.step() == [(first, 12, 1), (other, 0, 12), (own, 8, 3)]


def test_names_depend_on_tokens_what_comes_before_tenant_and_process() -> None:
    pool = BlockPool(1, block_size=SIZE)
    cache, other = PrefixCache(pool, secret=b"a" * 32), PrefixCache(pool, secret=b"b" * 32)

    def names(prompt: Tokens[int], tenant: str = "", by: PrefixCache = cache) -> list[bytes]:
        return list(by.names(sequence(prompt, tenant=tenant)))

    plain = names(range(11))
    assert len(plain) == 2 and plain == names(range(8))
    assert names([0, 1, 2, 3, 4, 5, 6, 8])[0] == plain[0]
    different = [
        plain,
        names([0, 1, 2, 4, 4, 5, 6, 7]),
        names(range(8), tenant="a"),
        names(range(8), by=other),
        names([4, 5, 6, 7, 0, 1, 2, 3]),
    ]
    flat = [name for each in different for name in each]
    assert len(set(flat)) == len(flat)


def test_a_prompt_whose_tokens_are_scored_is_computed_whole_but_once() -> None:
    driver = Driver(token_budget=8)
    first = driver.add(range(12))
    driver.step()
    driver.step()
    scored = driver.add(range(12), prompt_logprobs=1)
    assert driver.step() == [(first, 12, 1), (scored, 0, 7)]
    assert scored.num_cached_tokens == 0
    scored.num_read_tokens = 11
    assert scored.num_reusable_tokens == 11


def test_a_preempted_sequence_finds_what_is_left_of_its_own() -> None:
    driver = Driver(blocks=7, token_budget=32)
    first, second = driver.add([1] * 10), driver.add([2] * 9)
    while driver.scheduler.num_preemptions == 0:
        driver.step()
    assert second.lane is None and second.num_computed_tokens == 0
    driver.finish(first)
    assert driver.step() == [(second, 12, 1)]
    assert second.num_cached_tokens == 0, "its own work is no cached prompt"


def test_when_it_is_off_nothing_is_shared() -> None:
    pool = BlockPool(8, block_size=SIZE)
    cache = PrefixCache(pool, is_enabled=False)
    scheduler = Scheduler(pool, cache, StepCost(), max_running=2, token_budget=32)
    for _ in range(2):
        scheduler.add(sequence(range(8)))
        scheduler.computed(scheduler.schedule())
    assert len({block for each in scheduler.sequences() for block in each.block_table}) == 4
    assert scheduler.num_prefix_queries == 0


def test_drafts_come_after_the_tokens_and_the_right_ones_stay() -> None:
    driver = Driver()
    first = driver.add([1, 2])
    driver.step()
    assert first.token_ids == [1, 2, 3]
    first.set_drafts([1, 2, 4, 4])  # 1 and 2 are what the model says; then comes 4 itself

    batch = driver.scheduler.schedule()
    assert [(piece.first, piece.count, piece.num_drafts) for piece in batch.slices] == [(2, 5, 4)]
    assert batch.slices[0].token_ids == [3, 1, 2, 4, 4]
    assert batch.slices[0].catches_up and batch.slices[0].sampled == range(2, 7)


def test_what_was_computed_of_wrong_drafts_is_computed_again_and_never_shared() -> None:
    driver = Driver()
    first = driver.add([1, 2])
    driver.step()
    first.set_drafts([1, 3, 3, 3, 3])
    assert driver.step() == [(first, 2, 6)]
    assert first.token_ids == [1, 2, 3, 1, 2] and first.num_computed_tokens == 4
    assert first.draft_token_ids == []
    assert first.block_table == [0, 1]

    same_as_guessed = driver.add([1, 2, 3, 1, 3, 3, 3, 3, 0])

    assert driver.step() == [(first, 4, 1), (same_as_guessed, 4, 5)]


def test_blocks_are_shared_when_their_drafts_have_turned_out_right() -> None:
    driver = Driver()
    first = driver.add([1, 2])
    driver.step()
    first.set_drafts([1, 2, 4, 3, 1])
    driver.step()
    assert first.token_ids == [1, 2, 3, 1, 2, 4, 3, 1, 2] and first.num_computed_tokens == 8

    second = driver.add(first.token_ids)

    assert driver.step() == [(first, 8, 1), (second, 8, 1)]


def test_drafts_are_dropped_where_tokens_blocks_or_the_answer_end() -> None:
    driver = Driver(token_budget=8)
    first, second = driver.add([1, 2]), driver.add([2, 2], max_tokens=4)
    driver.step()
    first.set_drafts([9] * 9)
    second.set_drafts([9] * 9)
    assert driver.step() == [(first, 2, 7), (second, 2, 1)]
    second.set_drafts([9] * 9)
    assert driver.step() == [(first, 3, 1), (second, 3, 2)], "two to come: one is no draft"

    prompt = driver.add(range(20))
    first.set_drafts([9] * 9)
    assert driver.step() == [(first, 4, 1), (second, 4, 1), (prompt, 0, 6)]

    driver = Driver(blocks=3)
    first = driver.add([1, 2])
    driver.step()
    first.set_drafts([9] * 12)
    assert driver.step() == [(first, 2, 6)], "one block is left to each that runs"
    assert driver.scheduler.num_preemptions == 0


@pytest.mark.parametrize("seed", range(60))
def test_whatever_comes_blocks_hold_what_they_are_taken_for(seed: int) -> None:
    chance = random.Random(seed)
    driver = Driver(
        blocks=chance.randint(7, 40),
        max_running=chance.randint(1, 6),
        token_budget=chance.randint(6, 20),
    )
    texts: list[list[int]] = [[]]
    in_flight: list[Sequence] = []

    def advance(*, may_leave: bool) -> None:
        for each in in_flight:
            if each.lane is not None and chance.random() < 0.3:
                each.set_drafts(_guesses(each, chance))
        driver.step()
        for each in list(in_flight):
            if each.num_tokens_to_come == 0 or (may_leave and chance.random() < 0.03):
                driver.finish(each)
                texts.append(each.token_ids)
                in_flight.remove(each)

    for _ in range(250):
        if len(in_flight) < 8 and chance.random() < 0.4:
            known = chance.choice(texts)[: chance.randint(0, 14)]
            prompt = known + chance.choices(range(3), k=chance.randint(1, 4))
            options = {"tenant": chance.choice("ab"), "priority": chance.randint(0, 2)}
            added = driver.add(prompt, max_tokens=chance.randint(1, 9), **options)
            in_flight.append(added)
        advance(may_leave=True)
    for _ in range(300):
        advance(may_leave=False)

    assert not in_flight
    assert driver.pool.free_blocks == driver.pool.total_blocks
    assert driver.scheduler.num_prefix_hits > 5


def _guesses(each: Sequence, chance: random.Random) -> list[int]:
    """The right ones for a while, then any."""
    guesses: list[int] = []
    for _ in range(chance.randint(0, 6)):
        guesses.append(answer([*each.token_ids, *guesses]))
    return guesses + chance.choices(range(5), k=chance.randint(0, 3))
