"""What a request can ask of the way its tokens are chosen, over a small random model."""

import math
import random
from typing import Any

import pytest
import torch

from infra.errors import Invalid
from tests.engine.tiny import LetterTokenizer, greedy_alone, make_engine, request, run
from worker.engine.prompt_scores import MOST_ROWS
from worker.engine.request import Output
from worker.kernels.port import Span
from worker.models.causal_model import CausalModel

PROMPT = [97, 98, 99, 98, 97]
COMPANY = [request(f"other{index}", [100 + index] * (5 + 9 * index), 30) for index in range(5)]


def generate(
    model: CausalModel, max_tokens: int = 12, *, eos: int | None = None, **sampling: Any
) -> list[Output]:
    tokenizer = LetterTokenizer(frozenset() if eos is None else frozenset([eos]))
    asked = request("r", PROMPT, max_tokens, **sampling)
    return run(make_engine(model, tokenizer), [asked])["r"].outputs


def token_ids(outputs: list[Output]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def text(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


@pytest.fixture
def plain(tiny: CausalModel) -> list[int]:
    """What comes without any wishes."""
    return greedy_alone(tiny, PROMPT, 12)


def test_one_likeliest_token_is_greedy(tiny: CausalModel, plain: list[int]) -> None:
    for sampling in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert token_ids(generate(tiny, temperature=1.0, seed=3, **sampling)) == plain


def test_a_bias_forbids_and_forces(tiny: CausalModel, plain: list[int]) -> None:
    assert plain[0] not in token_ids(generate(tiny, logit_bias=((plain[0], -100.0),)))
    assert token_ids(generate(tiny, 3, logit_bias=((5, 100.0),))) == [5, 5, 5]


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 1e6},
        {"presence_penalty": 2.0, "logit_bias": ((120, 8.0), (121, 7.0), (97, -1.0))},
        {"frequency_penalty": 2.0, "logit_bias": ((120, 8.0), (121, 7.0))},
        {"frequency_penalty": -2.0, "presence_penalty": 1.0, "repetition_penalty": 0.9},
    ],
)
def test_what_was_said_is_penalised(tiny: CausalModel, sampling: dict[str, Any]) -> None:
    expected = penalised_by_hand(tiny, 25, **sampling)
    assert token_ids(generate(tiny, 25, **sampling)) == expected
    assert expected != greedy_alone(tiny, PROMPT, 25)


def penalised_by_hand(
    model: CausalModel,
    count: int,
    *,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: tuple[tuple[int, float], ...] = (),
) -> list[int]:
    answer: list[int] = []
    for _ in range(count):
        known = PROMPT + answer
        cache = model.allocate_cache(num_blocks=8, block_size=16)
        logits = model.logits(known, [Span(0, len(known), range(8))], [len(known) - 1], cache)[0]
        row = logits.double().tolist()
        for token, value in logit_bias:
            row[token] += value
        for token in set(known):
            row[token] *= 1 / repetition_penalty if row[token] > 0 else repetition_penalty
            row[token] -= frequency_penalty * answer.count(token)
            row[token] -= presence_penalty * (token in answer)
        answer.append(max(range(len(row)), key=row.__getitem__))
    return answer


@pytest.mark.parametrize("sampling", [
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 1.0, "presence_penalty": -0.5, "temperature": 0.8, "seed": 5},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.01, "temperature": 1.2, "seed": 6},
    {"min_tokens": 20, "stop_token_ids": frozenset(range(100, 150)), "temperature": 1.0, "seed": 7},
])  # fmt: skip
def test_company_chunks_and_preemption_change_nothing(
    tiny: CausalModel, sampling: dict[str, Any]
) -> None:
    asked = request("r", PROMPT * 6, 40, **sampling)
    alone = run(make_engine(tiny), [asked])["r"].token_ids
    engine = make_engine(tiny, kv_cache_tokens=128, token_budget=16, max_batch_size=6)
    crowded = run(engine, [*COMPANY, asked])["r"].token_ids
    assert engine.stats().preemptions > 0
    assert crowded == alone


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(
    tiny: CausalModel, plain: list[int]
) -> None:
    stop = next(token for token in plain if plain.index(token) > 0)
    outputs = generate(tiny, stop_token_ids=frozenset([stop]), logprobs=0)
    assert outputs[-1].finish_reason == "stop"
    end = plain.index(stop)
    assert token_ids(outputs) == plain[: end + 1]
    assert text(outputs) == "".join(map(chr, plain[:end]))
    assert sum(len(output.logprobs) for output in outputs) == end


def test_the_models_own_end_may_be_ignored_and_a_stop_token_may_not(
    tiny: CausalModel, plain: list[int]
) -> None:
    eos = plain[2]
    assert len(generate(tiny, eos=eos)) == plain.index(eos) + 1
    ignoring = generate(tiny, eos=eos, ignore_eos=True)
    assert token_ids(ignoring) == plain and ignoring[-1].finish_reason == "length"
    both = generate(tiny, eos=eos, ignore_eos=True, stop_token_ids=frozenset([eos]))
    assert both[-1].finish_reason == "stop"


def test_nothing_ends_an_answer_before_its_least_number_of_tokens(
    tiny: CausalModel, plain: list[int]
) -> None:
    eos = plain[0]
    assert len(generate(tiny, eos=eos)) == 1
    outputs = generate(tiny, eos=eos, min_tokens=4, logit_bias=((eos, 50.0),))
    assert token_ids(outputs)[4:] == [eos] and outputs[-1].finish_reason == "stop"
    assert eos not in token_ids(outputs)[:4]

    letter = chr(plain[0])
    assert len(generate(tiny, stop=(letter,))) == 1
    bias = ((plain[0], 100.0),)
    held = generate(tiny, stop=(letter,), min_tokens=3, logit_bias=bias)
    assert text(held) == letter * 3 and len(held) == 4 and held[-1].finish_reason == "stop"
    across = generate(tiny, stop=(letter * 3,), min_tokens=4, logit_bias=bias)
    assert text(across) == letter * 2 and len(across) == 5
    unmatched = generate(tiny, 3, stop=(letter,), min_tokens=3, logit_bias=bias)
    assert text(unmatched) == letter * 3 and unmatched[-1].finish_reason == "length"


def test_where_no_token_may_come_the_request_fails_and_no_other(tiny: CausalModel) -> None:
    everything = frozenset(range(160))
    sick = request("sick", PROMPT, 5, min_tokens=2, stop_token_ids=everything)
    got = run(make_engine(tiny), [sick, COMPANY[0]])
    assert isinstance(got["sick"].error, Invalid)
    assert got["other0"].token_ids == greedy_alone(tiny, COMPANY[0].prompt_token_ids, 30)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="at once"),
        pytest.param({"token_budget": 16, "max_batch_size": 6}, id="in chunks"),
        pytest.param({"kv_cache_tokens": 128, "token_budget": 16, "max_batch_size": 6}, id="tight"),
    ],
)
def test_the_prompts_tokens_have_their_logprobs(
    tiny: CausalModel, settings: dict[str, Any]
) -> None:
    chance = random.Random(4)
    prompts = [chance.choices(range(97, 123), k=length) for length in (1, 2, 40, 90)]
    asked = [
        request(f"r{index}", prompt, 20, prompt_logprobs=2) for index, prompt in enumerate(prompts)
    ]
    got = run(make_engine(tiny, **settings), [*asked, *COMPANY])

    for each, prompt in zip(asked, prompts, strict=True):
        first, *others = got[each.request_id].outputs
        assert not any(output.prompt_logprobs for output in others)
        assert math.isnan(first.prompt_logprobs[0].logprob)
        told = first.prompt_logprobs[1:]
        assert [logprob.token_id for logprob in told] == prompt[1:]
        expected = prompt_logprobs(tiny, prompt)
        for logprob, row in zip(told, expected, strict=True):
            assert logprob.logprob == pytest.approx(float(row[logprob.token_id]), abs=1e-5)
            assert [top.logprob for top in logprob.top] == pytest.approx(
                row.sort(descending=True).values[:2].tolist(), abs=1e-5
            )
    assert not any(output.prompt_logprobs for output in got["other0"].outputs)


def prompt_logprobs(model: CausalModel, prompt: list[int]) -> torch.Tensor:
    """[prompt - 1, vocabulary]: of each token after the first, computed one by one."""
    cache = model.allocate_cache(num_blocks=8, block_size=16)
    rows = [
        model.logits([token], [Span(position, 1, range(8))], [0], cache)[0]
        for position, token in enumerate(prompt)
    ]
    return torch.log_softmax(torch.stack(rows).float(), -1)[:-1]


def test_a_long_prompt_is_scored_without_holding_all_of_its_logits(
    tiny: CausalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random.Random(5).choices(range(97, 123), k=240)
    asked = request("r", prompt, 1, prompt_logprobs=1)
    told = run(make_engine(tiny, token_budget=16, max_batch_size=4), [asked])["r"].outputs[0]
    head, heights = tiny.head, []

    def watched(states: torch.Tensor) -> torch.Tensor:
        heights.append(len(states))
        return head(states)

    monkeypatch.setattr(tiny, "head", watched)
    engine = make_engine(tiny, token_budget=256)
    at_once = run(engine, [asked])["r"].outputs[0]

    assert engine.stats().steps == 1
    assert sum(heights) == 240 and max(heights) == MOST_ROWS
    assert at_once.prompt_logprobs[1:] == told.prompt_logprobs[1:]


def test_prompts_of_others_have_no_logprobs_in_the_same_step(tiny: CausalModel) -> None:
    asked = [request("a", PROMPT, 3), request("b", PROMPT, 3, prompt_logprobs=0)]
    got = run(make_engine(tiny), asked)
    assert got["a"].token_ids == got["b"].token_ids
    assert [len(output.prompt_logprobs) for output in got["a"].outputs] == [0, 0, 0]
    assert [len(output.prompt_logprobs) for output in got["b"].outputs] == [5, 0, 0]
