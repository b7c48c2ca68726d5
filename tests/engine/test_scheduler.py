"""The scheduler's batches and block tables, exactly."""

import random

import pytest

from worker.engine.block_pool import BlockPool
from worker.engine.prefix_cache import PrefixCache
from worker.engine.request import GenerationRequest, SamplingParams
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence


class Driver:
    """A scheduler with a model that always answers 7."""

    def __init__(
        self, *, blocks: int = 16, block_size: int = 4, max_running: int = 4, token_budget: int = 8
    ) -> None:
        self.pool = BlockPool(blocks, block_size=block_size)
        self.scheduler = Scheduler(
            self.pool,
            PrefixCache(self.pool, is_enabled=False),
            max_running=max_running,
            token_budget=token_budget,
        )
        self.by_name: dict[str, Sequence] = {}

    def add(self, name: str, prompt_tokens: int) -> None:
        request = GenerationRequest(name, (1,) * prompt_tokens, SamplingParams(max_tokens=1000))
        self.by_name[name] = Sequence(request, seed=0)
        self.scheduler.add(self.by_name[name])

    def remove(self, name: str) -> None:
        self.scheduler.remove(self.by_name.pop(name))
        self.scheduler.check_integrity()

    def step(self) -> dict[str, tuple[int, int]]:
        """Each scheduled sequence's first position and count."""
        batch = self.scheduler.schedule()
        sampled = batch.sampled
        self.scheduler.computed(batch)
        for piece in sampled:
            piece.sequence.token_ids.append(7)
        self.scheduler.check_integrity()
        return {piece.sequence.request_id: (piece.first, piece.count) for piece in batch.slices}

    def tables(self) -> dict[str, list[int]]:
        return {name: sequence.block_table for name, sequence in self.by_name.items()}


def test_a_prompt_is_computed_in_chunks_and_then_token_by_token() -> None:
    driver = Driver()
    driver.add("a", 19)
    assert [driver.step() for _ in range(5)] == [
        {"a": (0, 8)},
        {"a": (8, 8)},
        {"a": (16, 3)},
        {"a": (19, 1)},
        {"a": (20, 1)},
    ]


def test_a_prompt_gets_all_its_blocks_when_it_is_admitted_and_grows_in_order() -> None:
    driver = Driver()
    driver.add("a", 15)
    driver.step()
    assert driver.tables() == {"a": [0, 1, 2, 3]}
    driver.step()  # token 16 is the first generated one
    driver.step()
    assert driver.tables() == {"a": [0, 1, 2, 3]}
    driver.step()
    assert driver.tables() == {"a": [0, 1, 2, 3, 4]}


def test_sequences_start_far_apart_so_that_each_can_grow_in_one_piece() -> None:
    driver = Driver(token_budget=64)
    for name in "abcd":
        driver.add(name, 5)
    driver.step()
    assert driver.tables() == {"a": [0, 1], "b": [4, 5], "c": [8, 9], "d": [12, 13]}

    driver.remove("b")
    driver.add("e", 3)
    driver.step()
    assert driver.tables()["e"] == [4]


def test_a_lane_that_is_full_goes_on_in_the_next_free_blocks() -> None:
    driver = Driver(token_budget=64)
    driver.add("a", 1)
    driver.add("b", 1)
    driver.step()
    for _ in range(19):
        driver.step()
    assert driver.tables() == {"a": [0, 1, 2, 3, 8], "b": [4, 5, 6, 7, 9]}


def test_every_running_sequence_gets_a_token_before_the_next_prompt_gets_the_rest() -> None:
    driver = Driver(blocks=32, token_budget=8)
    driver.add("a", 2)
    driver.add("b", 3)
    driver.step()
    driver.add("c", 20)
    driver.add("d", 4)
    assert driver.step() == {"a": (2, 1), "b": (3, 1), "c": (0, 6)}
    assert driver.step() == {"a": (3, 1), "b": (4, 1), "c": (6, 6)}
    assert driver.step() == {"a": (4, 1), "b": (5, 1), "c": (12, 6)}
    assert driver.step() == {"a": (5, 1), "b": (6, 1), "c": (18, 2), "d": (0, 4)}


def test_a_sequence_computed_again_leaves_a_token_to_each_that_is_younger() -> None:
    driver = Driver(blocks=32)
    driver.add("a", 20)
    driver.step()
    driver.by_name["b"] = younger = Sequence(
        GenerationRequest("b", (1,), SamplingParams(max_tokens=9)), seed=0
    )
    driver.scheduler.add(younger)
    driver.step()
    driver.step()
    driver.by_name["a"].num_computed_tokens = 0  # as a sequence with much to catch up with
    assert driver.step() == {"a": (0, 7), "b": (1, 1)}


def test_places_are_limited_and_given_in_order_of_arrival() -> None:
    driver = Driver(max_running=2)
    for name in "abc":
        driver.add(name, 1)
    assert driver.step() == {"a": (0, 1), "b": (0, 1)}
    assert (driver.scheduler.num_running, driver.scheduler.num_waiting) == (2, 1)
    driver.remove("a")
    assert driver.step() == {"b": (1, 1), "c": (0, 1)}


def test_a_large_head_of_the_queue_is_not_overtaken() -> None:
    driver = Driver(blocks=8, token_budget=64)
    driver.add("a", 12)
    driver.add("b", 20)
    driver.add("c", 1)
    assert driver.step() == {"a": (0, 12)}
    assert driver.step() == {"a": (12, 1)}
    driver.remove("a")
    assert driver.step() == {"b": (0, 20), "c": (0, 1)}


def test_the_youngest_gives_way_when_blocks_run_out_and_is_computed_again() -> None:
    driver = Driver(blocks=4, token_budget=16)
    driver.add("a", 7)
    driver.add("b", 4)
    driver.add("c", 1)
    assert driver.step() == {"a": (0, 7), "b": (0, 4)}
    assert driver.tables() == {"a": [0, 1], "b": [2], "c": []}
    assert driver.step() == {"a": (7, 1), "b": (4, 1)}
    assert driver.tables() == {"a": [0, 1], "b": [2, 3], "c": []}

    assert driver.step() == {"a": (8, 1)}

    assert driver.tables() == {"a": [0, 1, 2], "b": [], "c": []}
    assert driver.scheduler.num_preemptions == 1
    assert [sequence.request_id for sequence in driver.scheduler.sequences()] == ["a", "b", "c"]
    driver.remove("a")
    assert driver.step() == {"b": (0, 6), "c": (0, 1)}
    assert driver.tables() == {"b": [0, 1], "c": [2]}


def test_the_youngest_gives_way_to_others_even_when_it_is_the_one_that_grows() -> None:
    driver = Driver(blocks=4, token_budget=16)
    driver.add("a", 8)
    driver.add("b", 4)
    assert driver.step() == {"a": (0, 8), "b": (0, 4)}
    assert driver.tables() == {"a": [0, 1], "b": [2]}
    assert driver.step() == {"a": (8, 1)}
    assert driver.tables() == {"a": [0, 1, 3], "b": []}


def test_nobody_is_admitted_into_blocks_that_the_running_need_next() -> None:
    driver = Driver(blocks=4, token_budget=16)
    driver.add("a", 9)
    driver.step()
    driver.add("b", 1)
    assert driver.step() == {"a": (9, 1)}
    driver.remove("a")
    assert driver.step() == {"b": (0, 1)}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_nothing_leaks_and_everything_finishes(seed: int) -> None:
    chance = random.Random(seed)
    driver = Driver(blocks=chance.randint(6, 20), max_running=chance.randint(1, 6), token_budget=8)
    wanted: dict[str, int] = {}
    for step in range(3000):
        if step < 150 and chance.random() < 0.3:
            name, prompt = f"r{step}", chance.randint(1, 12)
            wanted[name] = prompt + chance.randint(1, 12)
            driver.add(name, prompt)
        if wanted and chance.random() < 0.02:
            name = chance.choice(list(wanted))
            driver.remove(name)
            del wanted[name]
        scheduled = driver.step()
        assert bool(scheduled) == bool(wanted)
        assert sum(count for _, count in scheduled.values()) <= 8
        for name in [name for name in wanted if driver.by_name[name].num_tokens >= wanted[name]]:
            driver.remove(name)
            del wanted[name]
        if step > 150 and not wanted:
            break
    assert not wanted
    assert driver.pool.free_blocks == driver.pool.total_blocks
