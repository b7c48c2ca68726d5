"""The scheduler's batches and block tables, exactly."""

import random

import pytest

from worker.engine.block_pool import BlockPool
from worker.engine.prefix_cache import PrefixCache
from worker.engine.request import GenerationRequest, SamplingParams
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.step_cost import StepCost


class Driver:
    """A scheduler with a model that always answers 7."""

    def __init__(
        self, *, blocks: int = 16, block_size: int = 4, max_running: int = 4, token_budget: int = 8
    ) -> None:
        self.cost = StepCost()
        self.pool = BlockPool(blocks, block_size=block_size)
        self.scheduler = Scheduler(
            self.pool,
            PrefixCache(self.pool, is_enabled=False),
            self.cost,
            max_running=max_running,
            token_budget=token_budget,
        )
        self.by_name: dict[str, Sequence] = {}

    def add(
        self,
        name: str,
        prompt_tokens: int,
        *,
        priority: int = 0,
        tenant: str = "",
        deadline: float | None = None,
    ) -> None:
        request = GenerationRequest(
            name,
            (1,) * prompt_tokens,
            SamplingParams(max_tokens=1000),
            priority=priority,
            deadline=deadline,
            tenant=tenant,
        )
        self.by_name[name] = Sequence(request, seed=0)
        self.scheduler.add(self.by_name[name])

    def remove(self, name: str) -> None:
        self.scheduler.remove(self.by_name.pop(name))
        self.scheduler.check_integrity()

    def step(self, *, check: bool = True) -> dict[str, tuple[int, int]]:
        """Each scheduled sequence's first position and count."""
        batch = self.scheduler.schedule()
        sampled = batch.sampled
        self.scheduler.computed(batch)
        for piece in sampled:
            piece.sequence.token_ids.append(7)
        if check:
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


def test_the_most_urgent_goes_first_and_then_the_oldest() -> None:
    driver = Driver(max_running=2)
    driver.add("idle", 1, priority=5)
    driver.add("batch", 1, priority=5)
    driver.add("urgent", 1, priority=-1)
    driver.add("usual", 1)
    assert list(driver.step()) == ["urgent", "usual"]
    driver.remove("urgent")
    assert list(driver.step()) == ["usual", "idle"]


def test_the_less_urgent_makes_way_for_places() -> None:
    driver = Driver(max_running=2, token_budget=32)
    driver.add("idle", 6, priority=5)
    driver.add("batch", 6, priority=4)
    driver.step()
    driver.add("usual", 3)
    assert driver.step() == {"batch": (6, 1), "usual": (0, 3)}
    assert driver.scheduler.num_preemptions == 1
    driver.add("also batch", 3, priority=4)
    assert driver.step() == {"batch": (7, 1), "usual": (3, 1)}


def test_the_less_urgent_makes_way_for_blocks_whoever_is_older() -> None:
    driver = Driver(blocks=4, token_budget=32)
    driver.add("idle", 9, priority=5)
    driver.step()
    driver.add("usual", 4)
    assert driver.step() == {"usual": (0, 4)}
    driver.add("also usual", 4)
    driver.step()
    assert driver.tables() == {"idle": [], "usual": [0, 1], "also usual": [2]}
    assert driver.scheduler.num_preemptions == 1


def test_nobody_is_preempted_where_there_is_room() -> None:
    driver = Driver(token_budget=32)
    driver.add("idle", 9, priority=5)
    driver.step()
    driver.add("usual", 4)
    assert driver.step() == {"usual": (0, 4), "idle": (9, 1)}
    assert driver.scheduler.num_preemptions == 0


def test_a_tenant_with_much_does_not_delay_one_with_little() -> None:
    driver = Driver(blocks=400, max_running=100, token_budget=200)
    for index in range(100):
        driver.add(f"many{index}", 90, tenant="many")
    driver.step()
    driver.add("one", 90, tenant="one")
    driver.add("another", 40, tenant="another")

    steps = 0
    while not driver.by_name["one"].num_generated_tokens:
        driver.step()
        steps += 1

    assert driver.by_name["another"].num_generated_tokens
    assert steps <= 12, "a third of 27 tokens a step; those in front have 9000"


def test_tenants_take_turns_by_what_was_computed_for_them() -> None:
    driver = Driver(blocks=100, max_running=20, token_budget=20)
    for index in range(4):
        driver.add(f"long{index}", 20, tenant="a")
    for index in range(8):
        driver.add(f"short{index}", 10, tenant="b")
    computed = {"a": 0, "b": 0}
    for _ in range(5):
        for name, (_, count) in driver.step().items():
            computed[driver.by_name[name].tenant] += count
    assert abs(computed["a"] - computed["b"]) <= 20


def test_a_tenant_that_was_away_has_saved_nothing() -> None:
    driver = Driver(blocks=100, max_running=20, token_budget=20)
    for index in range(20):
        driver.add(f"a{index}", 16, tenant="a")
    driver.step()
    driver.step()
    for index in range(20):
        driver.add(f"b{index}", 16, tenant="b")
    prompts = [{name[0] for name, (_, count) in driver.step().items() if count > 1}
               for _ in range(8)]  # fmt: skip
    assert sum("a" in step for step in prompts) >= 3


def test_what_is_past_its_deadline_is_named_whether_it_runs_or_waits() -> None:
    driver = Driver(max_running=1)
    driver.add("runs", 1, deadline=5.0)
    driver.add("waits", 1, deadline=4.0)
    driver.add("patient", 1)
    driver.step()

    def expired(now: float) -> list[str]:
        return [each.request_id for each in driver.scheduler.expired(now=now)]

    assert expired(3.9) == []
    assert expired(4.0) == ["waits"]
    driver.remove("waits")
    assert expired(9.0) == ["runs"]
    driver.remove("runs")
    assert expired(9.0) == []
    assert list(driver.step()) == ["patient"]


def test_prompts_are_cut_short_beside_answers() -> None:
    driver = Driver(blocks=600, max_running=8, token_budget=256)
    driver.add("a", 300)
    assert [driver.step(), driver.step()] == [{"a": (0, 256)}, {"a": (256, 44)}]
    driver.add("b", 300)
    assert driver.step() == {"a": (300, 1), "b": (0, 24)}, "1.5 times (1 + 16), rounded"


def test_where_more_wait_than_are_answering_prompts_get_as_many_times_more_of_a_step() -> None:
    driver = Driver(blocks=600, max_running=8, token_budget=256)
    driver.add("a", 20)
    driver.step()
    for name in "bcde":
        driver.add(name, 100)
    assert driver.step() == {"a": (20, 1), "b": (0, 96)}, "4 times 1.5 times (1 + 16), rounded"
    assert driver.step() == {"a": (21, 1), "b": (96, 4), "c": (0, 92)}, "one of the 4 has a lane"
    for name in "bcde":
        driver.remove(name)
    assert driver.step() == {"a": (22, 1)}


def test_only_who_is_as_urgent_and_has_a_place_gets_more_of_a_step() -> None:
    driver = Driver(blocks=600, max_running=3, token_budget=256)
    driver.add("a", 20)
    driver.step()
    for name in ("later1", "later2"):
        driver.add(name, 100, priority=1)
    assert driver.step() == {"a": (20, 1), "later1": (0, 24)}, "1.5 times (1 + 16), rounded"
    for name in "bcde":
        driver.add(name, 100)
    assert driver.step() == {"a": (21, 1), "b": (0, 24)}, "for all others there is no lane"


def test_who_waits_for_blocks_makes_no_step_longer() -> None:
    driver = Driver(blocks=90, max_running=8, token_budget=256)
    driver.add("a", 20)
    driver.step()
    driver.add("b", 300)
    for name in "cde":
        driver.add(name, 100)
    assert driver.step() == {"a": (20, 1), "b": (0, 96)}, "4 times 1.5 times (1 + 16), rounded"
    assert driver.step() == {"a": (21, 1), "b": (96, 24)}, "for all others there are no blocks"


def test_a_burst_of_a_tenant_that_had_more_holds_up_nobody_else() -> None:
    driver = Driver(blocks=600, max_running=8, token_budget=256)
    driver.add("a", 20, tenant="quiet")
    driver.step()
    for name in "bcde":
        driver.add(name, 100, tenant="loud")
    assert driver.step() == {"a": (20, 1), "b": (0, 96)}, "both had 20"
    assert driver.step() == {"a": (21, 1), "b": (96, 4), "c": (0, 20)}
    assert driver.step() == {"a": (22, 1), "b": (100, 1), "c": (20, 24)}


def test_no_burst_makes_a_step_longer_than_its_budget() -> None:
    driver = Driver(blocks=600, max_running=32, token_budget=64)
    driver.add("a", 20)
    driver.step()
    for index in range(31):
        driver.add(f"b{index}", 60)
    assert driver.step() == {"a": (20, 1), "b0": (0, 60), "b1": (0, 3)}


@pytest.mark.parametrize(
    ("base_s", "token_s"), [(0.012, 0.0008), (0.010, 0.004), (0.008, 0.00002), (0.03, 0.0012)]
)
def test_answers_never_wait_three_times_as_long_as_usual(base_s: float, token_s: float) -> None:
    driver = Driver(blocks=800, block_size=16, max_running=16, token_budget=256)
    for name in "abcd":
        driver.add(name, 64)
    gaps = []
    for step in range(700):
        if step in (50, 300):
            driver.add(f"long{step}", 1500)
        scheduled = driver.step(check=False)
        num_tokens = sum(count for _, count in scheduled.values())
        seconds = base_s + token_s * num_tokens
        driver.cost.observe(num_tokens, len(scheduled), seconds)
        gaps.append(seconds)
        for name in [name for name in driver.by_name if name.startswith("long")]:
            if driver.by_name[name].num_generated_tokens > 20:
                driver.remove(name)
    gaps = sorted(gaps[20:])
    assert gaps[int(len(gaps) * 0.99)] <= 3 * gaps[len(gaps) // 2]
    assert not any(name.startswith("long") for name in driver.by_name)


def test_what_steps_cost_is_measured() -> None:
    cost = StepCost()
    assert cost.prompt_tokens(4) == 28, "30 in three binary digits"
    for _ in range(30):
        cost.observe(4, 4, 0.010 + 4 * 0.0001)
        cost.observe(60, 5, 0.010 + 60 * 0.0001)
    assert cost.prompt_tokens(4) == 128, "156 in three binary digits"
    cost.observe(60, 5, 3.0)  # something else held it up
    assert cost.prompt_tokens(4) >= 112
    for _ in range(60):
        cost.observe(60, 5, 0.010)  # a clock that shows nothing
        cost.observe(4, 4, 0.010)
    assert cost.prompt_tokens(4) >= 28


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
