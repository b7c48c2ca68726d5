"""The engine over the real model: the same tokens in any company, and sensible ones."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from tests.engine.tiny import Collected, greedy_alone, load_model, run
from worker.engine.engine import Engine
from worker.engine.request import GenerationRequest, SamplingParams
from worker.models.causal_model import CausalModel
from worker.tokenizer.tokenizer import Tokenizer

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

QUESTIONS = [
    "What is the capital of France?",
    "Count from one to ten.",
    "Write a haiku about the sea 🌊.",
    "def fibonacci(n):",
    "解释一下什么是光合作用。",
    "Tell me about the history of bread. " * 12,
]
TOKENS = 40


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_dir)


@pytest.fixture(scope="module")
def model(smollm2_dir: Path) -> CausalModel:
    torch.set_num_threads(2)
    return load_model(smollm2_dir)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode_chat([{"role": "user", "content": each}], now=0) for each in QUESTIONS]


@pytest.fixture(scope="module")
def expected(model: CausalModel, tokenizer: Tokenizer, prompts: list[list[int]]) -> list[list[int]]:
    return [greedy_alone(model, each, TOKENS, eos=tokenizer.eos_token_ids) for each in prompts]


def generate(
    model: CausalModel,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    *,
    every: int = 0,
    **settings: Any,
) -> tuple[Engine, list[Collected]]:
    engine = Engine(model, tokenizer, EngineSettings(**settings))
    engine.warm()
    asked = [
        GenerationRequest(str(index), tuple(each), SamplingParams(TOKENS, temperature=0))
        for index, each in enumerate(prompts)
    ]
    got = run(engine, asked, every=every, tokenizer=tokenizer)
    return engine, [got[each.request_id] for each in asked]


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        pytest.param({}, 0, id="all at once"),
        pytest.param({"token_budget": 16, "max_batch_size": 8}, 2, id="small chunks"),
        pytest.param({"kv_cache_tokens": 192, "token_budget": 61}, 0, id="a tiny cache"),
    ],
)
def test_greedy_output_is_that_of_a_plain_loop(
    model: CausalModel,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    expected: list[list[int]],
    settings: dict[str, Any],
    every: int,
) -> None:
    engine, got = generate(model, tokenizer, prompts, every=every, **settings)
    assert [each.token_ids for each in got] == expected
    assert (engine.stats().preemptions > 0) == ("kv_cache_tokens" in settings)


def test_streamed_text_is_the_decoded_tokens(
    model: CausalModel, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    from tokenizers import Tokenizer as Library

    _, got = generate(model, tokenizer, prompts)
    library: Library = tokenizer._tokenizer
    for each in got:
        assert each.text == library.decode(each.token_ids, skip_special_tokens=True)


def test_it_knows_the_capital_of_france(
    model: CausalModel, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    _, got = generate(model, tokenizer, prompts[:1])
    assert got[0].text == "The capital of France is Paris."
    assert got[0].outputs[-1].finish_reason == "stop"


def test_logits_of_a_token_are_the_same_bits_alone_and_in_a_crowd(
    model: CausalModel, prompts: list[list[int]]
) -> None:
    from worker.kernels.port import Span

    cache = model.allocate_cache(num_blocks=256, block_size=16, lanes=len(prompts))
    tables = [range(32 * index, 32 * index + 32) for index in range(len(prompts))]
    alone = []
    for lane, (prompt, table) in enumerate(zip(prompts, tables, strict=True)):
        span = Span(0, len(prompt), table, lane)
        alone.append(model.logits(prompt, [span], range(len(prompt)), cache))

    chance = random.Random(0)
    done = [0] * len(prompts)
    while any(count < len(prompt) for count, prompt in zip(done, prompts, strict=True)):
        token_ids: list[int] = []
        spans, wanted = [], []
        for index, prompt in enumerate(prompts):
            count = min(chance.choice([1, 2, 13, 40]), len(prompt) - done[index])
            if count:
                token_ids += prompt[done[index] : done[index] + count]
                spans.append(Span(done[index], count, tables[index], index))
                wanted.append(alone[index][done[index] : done[index] + count])
                done[index] += count
        got = model.logits(token_ids, spans, range(len(token_ids)), cache)
        assert torch.equal(got, torch.cat(wanted))
