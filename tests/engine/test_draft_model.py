"""A draft model's guesses change how many steps an answer takes, and nothing else."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from infra.errors import Invalid
from tests.engine.test_speculative_steps import (
    LETTERS,
    FreeGuesses,
    probabilities,
    random_request,
    run,
    told,
)
from tests.engine.tiny import load_model, request, write_model
from worker.engine.engine import Engine
from worker.engine.guess_cost import GuessCost
from worker.engine.kv_size import host_memory_bytes
from worker.engine.request import GenerationRequest
from worker.kernels.port import Kernels, KVCache, Span
from worker.models.causal_model import CausalModel

pytestmark = pytest.mark.real


class FreeDrafts(FreeGuesses):
    """The draft model's passes cost nothing either."""

    @property
    def pass_tokens(self) -> float:
        return 0.0

    @property
    def catch_up_tokens(self) -> float:
        return 0.0


class CostlyDrafts(GuessCost):
    """As a draft model costs that takes a third of a step."""

    base_tokens, pass_tokens, catch_up_tokens = 8.0, 3.0, 0.4


class Counted:
    """A model, with the number of tokens of each of its passes."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.passes: list[int] = []

    @property
    def kernels(self) -> Kernels:
        return self.model.kernels

    @property
    def vocabulary(self) -> int:
        return self.model.vocabulary

    @property
    def context_tokens(self) -> int:
        return self.model.context_tokens

    @property
    def kv_bytes_per_token(self) -> int:
        return self.model.kv_bytes_per_token

    def allocate_cache(self, *, num_blocks: int, block_size: int, lanes: int = 1) -> KVCache:
        return self.model.allocate_cache(num_blocks=num_blocks, block_size=block_size, lanes=lanes)

    def logits(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        return self.head(self.states(token_ids, spans, wanted, cache))

    def states(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        self.passes.append(len(token_ids))
        return self.model.states(token_ids, spans, wanted, cache)

    def head(self, states: torch.Tensor) -> torch.Tensor:
        return self.model.head(states)

    def to_host(self) -> None:
        self.model.to_host()

    def to_device(self) -> None:
        self.model.to_device()


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    """Another random model with the same vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "stranger"
    return load_model(write_model(folder, num_hidden_layers=1, hidden_size=32))


def make_engine(
    model: CausalModel, draft: CausalModel, cost: GuessCost | None = None, **settings: Any
) -> Engine:
    asked = EngineSettings(
        speculation="draft",
        draft_source="file:///draft",
        **({"kv_cache_tokens": 1024, "max_batch_size": 4} | settings),
    )
    engine = Engine(model, LETTERS, asked, guess_cost=cost or FreeDrafts(), draft=draft)
    engine.warm()
    return engine


def run_plainly(
    model: CausalModel, asked: list[GenerationRequest], *, every: int = 0, **settings: Any
) -> tuple[Engine, list[str]]:
    plain = EngineSettings(
        speculation="none", **({"kv_cache_tokens": 1024, "max_batch_size": 4} | settings)
    )
    engine = Engine(model, LETTERS, plain)
    engine.warm()
    return engine, list(map(told, run(engine, asked, every=every).values()))


@pytest.mark.parametrize("drafts_itself", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"token_budget": 18}, id="few tokens a step"),
        pytest.param({"kv_cache_tokens": 128}, id="preempting"),
        pytest.param({"prefix_cache": False, "block_size": 32}, id="nothing shared"),
    ],
)
def test_every_answer_is_what_it_is_without_a_draft_model(
    tiny: CausalModel, stranger: CausalModel, settings: dict[str, Any], drafts_itself: bool
) -> None:
    chance, every = random.Random(1), 2 if drafts_itself else 0
    asked = [random_request(f"r{index}", chance) for index in range(14)]
    plain, expected = run_plainly(tiny, asked, every=every, **settings)

    engine = make_engine(tiny, tiny if drafts_itself else stranger, **settings)
    got = run(engine, asked, every=every)

    assert list(map(told, got.values())) == expected
    stats = engine.stats()
    assert stats.guessed_tokens > 0
    assert stats.generated_tokens == plain.stats().generated_tokens
    assert stats.free_blocks == stats.total_blocks
    if "kv_cache_tokens" in settings and not every:
        assert plain.stats().preemptions and stats.preemptions


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"temperature": 1.0, "seed": 7}, id="sampled"),
        pytest.param(
            {"temperature": 0.8, "seed": 7, "top_p": 0.9, "presence_penalty": 1}, id="all"
        ),
    ],
)
def test_a_model_that_drafts_for_itself_is_always_right(
    tiny: CausalModel, sampling: dict[str, Any]
) -> None:
    """The draft draws with the answer's own numbers, so both draw the same."""
    asked = [
        request(f"r{index}", range(90, 100 + index), 40, ignore_eos=True, **sampling)
        for index in range(3)
    ]
    plain, expected = run_plainly(tiny, asked)

    engine = make_engine(tiny, tiny)

    assert list(map(told, run(engine, asked, every=0).values())) == expected
    stats = engine.stats()
    assert stats.accepted_tokens == stats.guessed_tokens > 60
    assert stats.steps * 3 < plain.stats().steps


def test_guesses_of_a_draft_model_do_not_change_how_often_a_token_is_drawn(
    tiny: CausalModel, stranger: CausalModel
) -> None:
    """Pairs of tokens, the second one guessed, as often as the model's logits say."""
    tokens, prompt = (97, 98, 99), [101, 97, 98, 101]
    bias = tuple((token_id, 100.0) for token_id in tokens)
    asked = [
        request(f"r{seed}", prompt, 4, temperature=1.0, seed=seed, logit_bias=bias)
        for seed in range(300)
    ]
    engine = make_engine(tiny, stranger)

    got = run(engine, asked, every=0)

    stats = engine.stats()
    assert stats.accepted_tokens > 50
    assert stats.guessed_tokens > stats.accepted_tokens + 50
    counts = Counter(tuple(each.token_ids[:2]) for each in got.values())
    chi_square = 0.0
    for one, likely in zip(tokens, probabilities(tiny, prompt, tokens), strict=True):
        following = probabilities(tiny, [*prompt, one], tokens)
        for two, next_likely in zip(tokens, following, strict=True):
            expected = len(asked) * likely * next_likely
            chi_square += (counts[one, two] - expected) ** 2 / expected
    assert chi_square < 26.1  # eight degrees of freedom: one in a thousand is larger


def test_a_draft_model_that_is_never_right_soon_does_not_run(
    tiny: CausalModel, stranger: CausalModel
) -> None:
    draft = Counted(stranger)
    engine = make_engine(tiny, draft, CostlyDrafts())

    run(engine, [request("first", [97] * 30, 100)], every=0)
    at_first = sum(draft.passes)
    for index in range(8):
        run(engine, [request(f"r{index}", [97 + index] * 30, 100)], every=0)

    assert 30 < at_first < 60
    assert sum(draft.passes) - at_first < 8 * 50  # of 1,040 that the model computed
    assert engine.stats().guessed_tokens < 30


def test_a_draft_model_that_fell_behind_catches_up_in_parts(tiny: CausalModel) -> None:
    draft = Counted(tiny)
    engine = make_engine(tiny, draft)
    prompt = [97 + index % 26 for index in range(400)]
    _, expected = run_plainly(tiny, [request("r", prompt, 30)])

    got = run(engine, [request("r", prompt, 30)], every=0)

    assert [told(got["r"])] == expected
    assert max(draft.passes) < 400 < sum(draft.passes)
    assert engine.stats().accepted_tokens == engine.stats().guessed_tokens > 8


def test_what_the_draft_model_computed_of_a_shared_beginning_is_shared_too(
    tiny: CausalModel,
) -> None:
    draft = Counted(tiny)
    engine = make_engine(tiny, draft)
    prompt = [97 + index % 26 for index in range(64)]
    run(engine, [request("first", prompt, 8)], every=0)
    at_first = sum(draft.passes)

    run(engine, [request("second", [*prompt, 98], 8)], every=0)

    assert at_first > 64
    assert sum(draft.passes) - at_first < 20


def test_an_aborted_answer_leaves_nothing(tiny: CausalModel) -> None:
    engine = make_engine(tiny, tiny)
    for index in range(3):
        engine.submit(request(f"r{index}", [97 + index] * 20, 100))
    for _ in range(4):
        engine.step()
    assert engine.stats().guessed_tokens > 0

    for index in range(3):
        engine.abort(f"r{index}")

    engine.check_integrity()
    assert engine.stats().free_blocks == engine.stats().total_blocks
    assert not engine.has_work()


def test_no_guess_goes_beyond_the_draft_models_own_context(
    tiny: CausalModel, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "short", num_hidden_layers=1, max_position_embeddings=32)
    asked = [request("r", [97] * 20, 40)]
    _, expected = run_plainly(tiny, asked)

    engine = make_engine(tiny, load_model(folder))

    assert list(map(told, run(engine, asked, every=0).values())) == expected
    assert engine.stats().guessed_tokens > 0


class Roomy(Counted):
    """A model whose keys and values of one block take all memory that there is."""

    @property
    def kv_bytes_per_token(self) -> int:
        return host_memory_bytes() // 16


def test_both_models_keys_and_values_have_to_fit_the_memory(tiny: CausalModel) -> None:
    settings = EngineSettings(kv_cache_tokens=16)
    assert Engine(Roomy(tiny), LETTERS, settings).stats().total_blocks == 1
    with pytest.raises(Invalid, match="more than the machine's"):
        make_engine(Roomy(tiny), tiny, kv_cache_tokens=16)
