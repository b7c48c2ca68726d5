"""Guesses change how many steps an answer takes, and nothing else."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from infra.contracts.model_spec import EngineSettings
from tests.engine.tiny import Collected, LetterTokenizer, request, run
from worker.engine.engine import Engine
from worker.engine.guess_cost import GuessCost
from worker.engine.request import GenerationRequest, Guide
from worker.kernels.port import Span
from worker.models.causal_model import CausalModel

LETTERS = LetterTokenizer(frozenset([0]))


class FreeGuesses(GuessCost):
    """So that all are computed that are not hopeless, on any machine."""

    @property
    def base_tokens(self) -> float:
        return 1e6


def make_engine(model: CausalModel, **settings: Any) -> Engine:
    asked = EngineSettings(**({"kv_cache_tokens": 1024, "max_batch_size": 4} | settings))
    engine = Engine(model, LETTERS, asked, guess_cost=FreeGuesses())
    engine.warm()
    return engine


def random_request(request_id: str, chance: random.Random) -> GenerationRequest:
    motif = chance.choices(range(97, 105), k=chance.randint(2, 9))
    prompt = (motif * 12)[: chance.randint(1, 70)]
    sampling: dict[str, Any] = {}
    if chance.random() < 0.6:
        sampling |= {"temperature": chance.choice([0.2, 0.7, 1.0]), "seed": chance.randint(0, 99)}
        sampling |= chance.choice([{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}])
    for part in (
        {"logit_bias": tuple((token_id, 60.0) for token_id in chance.sample(range(97, 105), 3))},
        {"repetition_penalty": 1.1, "presence_penalty": 0.2},
        {"frequency_penalty": 0.3},
        {"stop": (chr(chance.randint(97, 104)) * 2, "ab")},
        {"stop_token_ids": frozenset([chance.randint(97, 104)])},
        {"min_tokens": 9},
        {"logprobs": 2},
        {"prompt_logprobs": 1},
        {"guide": chance.choice([Guide("regex", "([a-c]{2}-)*x?"), Guide("choice", '["abcabc"]')])},
        {"guide": Guide("json_schema", json.dumps({"type": "array", "items": {"enum": [1, 22]}}))},
    ):
        if chance.random() < 0.25:
            sampling |= part
    return request(request_id, prompt, chance.randint(9, 40), **sampling)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"token_budget": 18, "max_batch_size": 4}, id="few tokens a step"),
        pytest.param({"kv_cache_tokens": 128}, id="preempting"),
        pytest.param({"prefix_cache": False, "block_size": 32}, id="nothing shared"),
    ],
)
@pytest.mark.parametrize(("seed", "every"), [(1, 0), (2, 2)])
def test_every_answer_is_what_it_is_without_guesses(
    tiny: CausalModel, settings: dict[str, Any], seed: int, every: int
) -> None:
    chance = random.Random(seed)
    asked = [random_request(f"r{index}", chance) for index in range(14)]
    plain = make_engine(tiny, speculation="none", **settings)
    expected = run(plain, asked, every=every)

    engine = make_engine(tiny, **settings)
    got = run(engine, asked, every=every)

    assert list(map(told, got.values())) == list(map(told, expected.values()))
    stats, plainly = engine.stats(), plain.stats()
    assert plainly.guessed_tokens == 0 < stats.guessed_tokens
    dropped = sum(each.num_dropped for each in got.values())
    assert stats.generated_tokens == plainly.generated_tokens + dropped
    assert stats.free_blocks == stats.total_blocks
    if "kv_cache_tokens" in settings and not every:
        assert plainly.preemptions and stats.preemptions


def told(answer: Collected) -> Any:
    """Everything that a client sees of an answer; what is not a number as text."""
    outputs = [replace(each, cached_tokens=0) for each in answer.outputs]
    return repr((outputs, str(answer.error)))


def test_a_text_that_repeats_takes_a_fraction_of_the_steps(tiny: CausalModel) -> None:
    forced = tuple((token_id, 100.0) for token_id in (97,))
    asked = [request("r", [97] * 8, 64, logit_bias=forced)]
    engine = make_engine(tiny)

    assert run(engine, asked, every=0)["r"].token_ids == [97] * 64
    assert engine.stats().steps <= 14
    assert engine.stats().accepted_tokens >= 50


def test_guesses_do_not_change_how_often_a_token_is_drawn(tiny: CausalModel) -> None:
    """Pairs of tokens, the second one guessed, as often as the model's logits say."""
    tokens = (97, 98, 99)
    prompt = [101, 97, 98, 101, 98, 99, 101, 99, 97, 101]
    asked = [
        request(
            f"r{seed}",
            prompt,
            4,
            temperature=1.0,
            seed=seed,
            logit_bias=tuple((token_id, 100.0) for token_id in tokens),
        )
        for seed in range(200)
    ]
    engine = make_engine(tiny)

    got = run(engine, asked, every=0)

    stats = engine.stats()
    assert stats.accepted_tokens > 50
    assert stats.guessed_tokens > stats.accepted_tokens + 50
    counts = Counter(tuple(each.token_ids[:2]) for each in got.values())
    first = probabilities(tiny, prompt, tokens)
    chi_square = 0.0
    for one, likely in zip(tokens, first, strict=True):
        for two, next_likely in zip(
            tokens, probabilities(tiny, [*prompt, one], tokens), strict=True
        ):
            expected = len(asked) * likely * next_likely
            chi_square += (counts[one, two] - expected) ** 2 / expected
    assert chi_square < 26.1  # eight degrees of freedom: one in a thousand is larger


def probabilities(model: CausalModel, text: list[int], among: tuple[int, ...]) -> list[float]:
    blocks = range(len(text) // 16 + 1)
    cache = model.allocate_cache(num_blocks=len(blocks), block_size=16)
    logits = model.logits(text, [Span(0, len(text), blocks)], [len(text) - 1], cache)
    weights = [math.exp(float(logits[0, token_id])) for token_id in among]
    return [weight / sum(weights) for weight in weights]
