"""What was computed once is found again, by whom it may be, and never wrongly."""

import random
from collections.abc import Sequence as Tokens

import pytest

from worker.engine.block_pool import BlockPool
from worker.engine.prefix_cache import PrefixCache
from worker.engine.request import GenerationRequest, SamplingParams
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence

SIZE = 4


def sequence(
    prompt: Tokens[int], *, tenant: str = "", prompt_logprobs: int | None = None
) -> Sequence:
    sampling = SamplingParams(max_tokens=1000, prompt_logprobs=prompt_logprobs)
    return Sequence(GenerationRequest("r", tuple(prompt), sampling, tenant=tenant), seed=0)


class Driver:
    """A scheduler with a model that answers with the sum of what it reads, modulo 5.

    Remembers which tokens each block's places hold, and checks that what is taken for computed is.
    """

    def __init__(self, *, blocks: int = 32, max_running: int = 4, token_budget: int = 16) -> None:
        self.pool = BlockPool(blocks, block_size=SIZE)
        self.scheduler = Scheduler(
            self.pool, PrefixCache(self.pool), max_running=max_running, token_budget=token_budget
        )
        self.held: dict[int, int] = {}  # token by place

    def add(self, prompt: Tokens[int], **options: object) -> Sequence:
        added = sequence(prompt, **options)  # type: ignore[arg-type]
        self.scheduler.add(added)
        return added

    def step(self) -> list[tuple[Sequence, int, int]]:
        batch = self.scheduler.schedule()
        for piece in batch.slices:
            for position in range(piece.first, piece.first + piece.count):
                token = piece.sequence.token_ids[position]
                self.held[self._place(piece.sequence, position)] = token
        self.scheduler.computed(batch)
        for piece in batch.slices:
            each = piece.sequence
            computed = range(each.num_computed_tokens)
            held = [self.held[self._place(each, position)] for position in computed]
            assert held == each.token_ids[: each.num_computed_tokens]
            assert each.num_uncomputed_tokens >= 0
        for piece in batch.sampled:
            assert piece.count, "logits need a token"
            piece.sequence.token_ids.append(sum(piece.sequence.token_ids) % 5)
        self.scheduler.check_integrity()
        return [(piece.sequence, piece.first, piece.count) for piece in batch.slices]

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
    scored.num_scored_tokens = 11
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
    scheduler = Scheduler(pool, cache, max_running=2, token_budget=32)
    for _ in range(2):
        scheduler.add(sequence(range(8)))
        scheduler.computed(scheduler.schedule())
    assert len({block for each in scheduler.sequences() for block in each.block_table}) == 4
    assert scheduler.num_prefix_queries == 0


@pytest.mark.parametrize("seed", range(30))
def test_whatever_comes_blocks_hold_what_they_are_taken_for(seed: int) -> None:
    chance = random.Random(seed)
    driver = Driver(
        blocks=chance.randint(7, 40),
        max_running=chance.randint(1, 6),
        token_budget=chance.randint(6, 20),
    )
    texts: list[list[int]] = [[]]
    wanted: dict[Sequence, int] = {}
    for _ in range(300):
        if len(wanted) < 8 and chance.random() < 0.4:
            known = chance.choice(texts)
            prompt = known[: chance.randint(0, 14)] + chance.choices(
                range(3), k=chance.randint(1, 4)
            )
            added = driver.add(prompt, tenant=chance.choice("ab"))
            wanted[added] = len(prompt) + chance.randint(1, 9)
        driver.step()
        for each in list(wanted):
            if each.num_tokens >= wanted[each] or chance.random() < 0.03:
                driver.finish(each)
                texts.append(each.token_ids)
                del wanted[each]
    for _ in range(300):
        driver.step()
        for each in [each for each in wanted if each.num_tokens >= wanted[each]]:
            driver.finish(each)
            del wanted[each]
    assert not wanted
    assert driver.pool.free_blocks == driver.pool.total_blocks
    assert driver.scheduler.num_prefix_hits > 5
