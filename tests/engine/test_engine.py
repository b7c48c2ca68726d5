"""The engine over a small random model: the same tokens however they are computed."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infra.errors import ContextLengthExceeded, ExecutionTimeout, Invalid, PlatformError
from tests.engine.flex import Tape, flex_model
from tests.engine.tiny import (
    CONFIG,
    LetterTokenizer,
    greedy_alone,
    load_model,
    make_engine,
    random_tensors,
    request,
    run,
    write_model,
)
from worker.engine.event import Ending, Failure, NewToken, PromptScores
from worker.engine.request import Guide
from worker.models.causal_model import CausalModel

LETTERS = range(97, 123)


@pytest.fixture(
    scope="module",
    params=["bfloat16", "float32", pytest.param("on a GPU's kernels", marks=pytest.mark.real)],
)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    """A random model on each of the kernels; those of a GPU run in float32, recorded."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    if request.param == "on a GPU's kernels":
        return flex_model(write_model(folder, torch_dtype="float32"), Tape())
    return load_model(write_model(folder, torch_dtype=request.param))


@cache
def _alone(model: CausalModel, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(greedy_alone(model, prompt, count))


def alone(model: CausalModel, prompt: Sequence[int], count: int) -> list[int]:
    """The oracle's tokens, computed once for all the ways that are compared with it."""
    return list(_alone(model, tuple(prompt), count))


def prompts(count: int, *, longest: int = 60, seed: int = 1) -> list[list[int]]:
    chance = random.Random(seed)
    return [chance.choices(LETTERS, k=chance.randint(1, longest)) for _ in range(count)]


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        pytest.param({}, 0, id="roomy, at once"),
        pytest.param({}, 3, id="roomy"),
        pytest.param({"token_budget": 16, "max_batch_size": 4}, 0, id="chunks of 16, at once"),
        pytest.param({"token_budget": 37}, 3, id="odd chunks"),
        pytest.param({"block_size": 64}, 3, id="large blocks"),
        pytest.param({"kv_cache_tokens": 96}, 0, id="preempting, at once"),
        pytest.param({"kv_cache_tokens": 96, "token_budget": 17}, 3, id="preempting in chunks"),
        pytest.param({"max_batch_size": 1}, 3, id="one at a time"),
    ],
)
def test_greedy_output_is_that_of_a_plain_loop_whatever_else_runs(
    tiny: CausalModel, settings: dict[str, Any], every: int
) -> None:
    asked = [request(f"r{index}", prompt, 12) for index, prompt in enumerate(prompts(6))]
    expected = [alone(tiny, each.prompt_token_ids, 12) for each in asked]

    engine = make_engine(tiny, **settings)
    got = run(engine, asked, every=every)

    assert [got[each.request_id].token_ids for each in asked] == expected
    stats = engine.stats()
    assert stats.free_blocks == stats.total_blocks
    assert stats.generated_tokens == 6 * 12
    assert stats.prompt_tokens == sum(len(each.prompt_token_ids) for each in asked)
    assert (stats.running, stats.waiting) == (0, 0)


def test_a_pool_too_small_for_all_preempts_and_still_gives_the_same_tokens(
    tiny: CausalModel,
) -> None:
    asked = [request(f"r{index}", prompt, 40) for index, prompt in enumerate(prompts(4))]
    engine = make_engine(tiny, kv_cache_tokens=112)

    got = run(engine, asked)

    assert engine.stats().preemptions > 0
    for each in asked:
        assert got[each.request_id].token_ids == alone(tiny, each.prompt_token_ids, 40)


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        pytest.param({}, 0, id="shared, at once"),
        pytest.param({}, 2, id="shared"),
        pytest.param({"prefix_cache": False}, 2, id="off"),
        pytest.param({"token_budget": 16, "max_batch_size": 4}, 0, id="in chunks, at once"),
        pytest.param({"block_size": 32, "token_budget": 37}, 2, id="larger blocks"),
        pytest.param({"kv_cache_tokens": 144}, 2, id="preempting"),
    ],
)
def test_what_is_shared_of_prompts_changes_no_token(
    tiny: CausalModel, settings: dict[str, Any], every: int
) -> None:
    common = prompts(1, longest=60, seed=9)[0] * 60
    asked = [
        request(f"r{index}", [*common[:length], 97 + index % 3], 30)
        for index, length in enumerate([60, 60, 47, 64, 60, 33])
    ]
    expected = {each.prompt_token_ids: alone(tiny, each.prompt_token_ids, 30) for each in asked}

    engine = make_engine(tiny, **settings)
    got = run(engine, asked, every=every)
    answered = run(engine, [request("next", [*asked[0].prompt_token_ids, *got["r0"].token_ids], 9)])

    assert [got[each.request_id].token_ids for each in asked] == [
        expected[each.prompt_token_ids] for each in asked
    ]
    text = [*asked[0].prompt_token_ids, *got["r0"].token_ids]
    assert answered["next"].token_ids == alone(tiny, text, 9)
    stats = engine.stats()
    told = sum(each.outputs[0].cached_tokens for each in (got | answered).values())
    assert stats.cached_prompt_tokens == told
    assert (told > 100 and stats.prefix_hits > 3) == settings.get("prefix_cache", True)
    assert all(not output.cached_tokens for each in got.values() for output in each.outputs[1:])
    assert stats.free_blocks == stats.total_blocks


def test_sequences_across_several_key_tiles_agree_too(tiny: CausalModel) -> None:
    asked = [request(f"r{i}", p, 6) for i, p in enumerate(prompts(3, longest=700, seed=4))]
    expected = [alone(tiny, each.prompt_token_ids, 6) for each in asked]

    got = run(make_engine(tiny, kv_cache_tokens=3072, token_budget=100), asked)

    assert [got[each.request_id].token_ids for each in asked] == expected


def test_a_seed_gives_the_same_tokens_in_any_company(tiny: CausalModel) -> None:
    asked = request("seeded", prompts(1)[0], 30, temperature=1.3, top_p=0.9, seed=7)
    alone = run(make_engine(tiny), [asked])["seeded"].token_ids

    company = [request(f"r{i}", p, 30, temperature=1.0) for i, p in enumerate(prompts(7, seed=2))]
    crowded = run(
        make_engine(tiny, kv_cache_tokens=192, token_budget=24), [*company, asked], every=1
    )

    assert crowded["seeded"].token_ids == alone
    other = run(make_engine(tiny), [request("other", prompts(1)[0], 30, temperature=1.3, seed=8)])
    assert other["other"].token_ids != alone


def test_requests_without_a_seed_differ(tiny: CausalModel) -> None:
    asked = [request(f"r{index}", [97], 30, temperature=2.0) for index in range(2)]
    got = run(make_engine(tiny), asked)
    assert got["r0"].token_ids != got["r1"].token_ids


def test_a_shorter_prompt_is_not_held_up_by_steps_of_a_longer_one(tiny: CausalModel) -> None:
    engine = make_engine(tiny, token_budget=16, max_batch_size=4)
    engine.submit(request("short", [97], 50))
    engine.step()
    engine.submit(request("long", [98] * 200, 4))

    steps_with_short = sum(
        any(event.request_id == "short" for event in engine.step()) for _ in range(10)
    )

    assert steps_with_short == 10


def test_a_request_ends_with_its_deadline_and_no_other_does(tiny: CausalModel) -> None:
    now = [0.0]
    engine = make_engine(tiny, clock=lambda: now[0], max_batch_size=1)
    engine.submit(replace(request("runs", [97, 98], 50), deadline=4.0))
    engine.submit(replace(request("waits", [97, 98], 50), deadline=3.0))
    engine.submit(request("patient", [97, 98], 5))
    assert [event.request_id for event in engine.step()] == ["runs"]

    now[0] = 5.0
    *ended, other = engine.step()
    engine.check_integrity()

    assert {each.request_id for each in ended} == {"runs", "waits"}
    for each in ended:
        assert isinstance(each, Failure) and isinstance(each.error, ExecutionTimeout)
    assert isinstance(other, NewToken) and other.request_id == "patient"
    assert engine.stats().running == 1 and engine.stats().waiting == 0


def test_urgent_requests_change_when_tokens_come_and_not_which(tiny: CausalModel) -> None:
    asked = [
        replace(request(f"r{i}", prompt, 20), priority=-i, tenant=f"tenant{i % 3}")
        for i, prompt in enumerate(prompts(7, seed=6))
    ]
    engine = make_engine(tiny, kv_cache_tokens=160, max_batch_size=3)

    got = run(engine, asked, every=3)

    assert engine.stats().preemptions > 0
    for each in asked:
        assert got[each.request_id].token_ids == alone(tiny, each.prompt_token_ids, 20)


def test_the_end_token_ends_a_text_and_is_not_part_of_it(tiny: CausalModel) -> None:
    prompt = prompts(1)[0]
    plain = alone(tiny, prompt, 20)
    end = next(token for token in plain if token != plain[0])
    engine = make_engine(tiny, LetterTokenizer(frozenset([end])))

    got = run(engine, [request("r", prompt, 20)])["r"]

    cut = plain.index(end)
    assert got.token_ids == plain[: cut + 1]
    assert got.text == "".join(map(chr, plain[:cut]))
    assert got.outputs[-1].finish_reason == "stop"
    assert engine.stats().free_blocks == engine.stats().total_blocks


def test_max_tokens_ends_with_length(tiny: CausalModel) -> None:
    got = run(make_engine(tiny), [request("r", [97, 98], 3)])["r"]
    assert [output.finish_reason for output in got.outputs] == [None, None, "length"]


def test_a_step_tells_tokens_and_why_the_last_was_the_last(tiny: CausalModel) -> None:
    prompt = prompts(1)[0]
    plain = alone(tiny, prompt, 20)
    end = next(token for token in plain if token != plain[0])
    cut = plain.index(end) + 1
    choice = Guide("choice", '["aaa"]')
    engine = make_engine(tiny, LetterTokenizer(frozenset([end])), speculation="none")
    engine.submit(request("ends", prompt, 20))
    engine.submit(request("cut", prompt, 20, ignore_eos=True))
    engine.submit(request("guided", prompt, 20, guide=choice), engine.compile(choice))
    engine.submit(request("cut at its end", prompt, cut))

    told: dict[str, list[tuple[int, Ending | None]]] = {}
    while engine.has_work():
        for event in engine.step():
            assert isinstance(event, NewToken)
            told.setdefault(event.request_id, []).append((event.choice.token_id, event.ending))

    assert told["ends"] == [*((token, None) for token in plain[: cut - 1]), (end, Ending.END_TOKEN)]
    assert told["cut"] == [*((token, None) for token in plain[:-1]), (plain[-1], Ending.LENGTH)]
    assert told["guided"] == [(97, None), (97, None), (97, Ending.GUIDE_COMPLETE)]
    assert told["cut at its end"] == told["ends"]


def test_a_prompt_is_scored_as_it_is_computed_and_before_its_answer(tiny: CausalModel) -> None:
    prompt = [*LETTERS, *LETTERS][:40]
    engine = make_engine(tiny, token_budget=16, max_batch_size=1)
    engine.submit(request("r", prompt, 1, prompt_logprobs=0))

    steps = []
    while engine.has_work():
        steps.append(engine.step())

    scored = [each.choices for step in steps for each in step if isinstance(each, PromptScores)]
    assert [len(choices) for choices in scored] == [16, 16, 7]
    assert [each.token_id for choices in scored for each in choices] == prompt[1:]
    assert [type(each) for each in steps[-1]] == [PromptScores, NewToken]


def test_stop_strings_are_none_of_the_engines_business(tiny: CausalModel) -> None:
    prompt = prompts(1)[0]
    plain = alone(tiny, prompt, 20)
    engine = make_engine(tiny)
    engine.submit(request("r", prompt, 20, stop=(chr(plain[5]),)))

    made: list[int] = []
    while engine.has_work():
        for event in engine.step():
            assert isinstance(event, NewToken)
            made.append(event.choice.token_id)

    assert made == plain


def test_a_stop_string_ends_the_text_before_it(tiny: CausalModel) -> None:
    prompt = prompts(1)[0]
    plain = "".join(map(chr, alone(tiny, prompt, 20)))
    stop = plain[5:8]

    got = run(make_engine(tiny), [request("r", prompt, 20, stop=(stop, "never"))])["r"]

    assert got.text == plain[: plain.index(stop)]
    assert got.outputs[-1].finish_reason == "stop"


def test_aborting_frees_blocks_at_once(tiny: CausalModel) -> None:
    engine = make_engine(tiny, max_batch_size=2)
    for index, prompt in enumerate(prompts(4)):
        engine.submit(request(f"r{index}", prompt, 50))
    engine.step()
    assert engine.stats().running == 2 and engine.stats().waiting == 2

    engine.abort("r0")  # runs
    engine.abort("r3")  # waits
    engine.abort("r3")  # again
    engine.abort("unknown")
    engine.check_integrity()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)

    engine.abort("r1")
    engine.abort("r2")
    stats = engine.stats()
    assert stats.free_blocks == stats.total_blocks and not engine.has_work()
    assert engine.step() == []


def test_logprobs_are_of_the_model_and_not_of_the_temperature(tiny: CausalModel) -> None:
    prompt = prompts(1)[0]
    cold = run(make_engine(tiny), [request("r", prompt, 5, logprobs=3)])["r"]
    hot = run(make_engine(tiny), [request("r", prompt, 1, logprobs=3, temperature=5.0, seed=1)])[
        "r"
    ]

    first = cold.outputs[0].logprobs[0]
    assert first.token_id == first.top[0].token_id == cold.token_ids[0]
    assert first.logprob == first.top[0].logprob < 0
    assert [each.logprob for each in first.top] == sorted(
        (each.logprob for each in first.top), reverse=True
    )
    assert first.bytes == bytes([cold.token_ids[0]]) and first.text == chr(cold.token_ids[0])
    assert hot.outputs[0].logprobs[0].top == first.top
    assert [len(output.logprobs) for output in cold.outputs] == [1] * 5


def test_what_can_never_run_is_refused_at_once(tiny: CausalModel) -> None:
    engine = make_engine(tiny, kv_cache_tokens=512)

    with pytest.raises(ContextLengthExceeded, match="context of 1024"):
        make_engine(tiny, kv_cache_tokens=4096).check(request("r", [97] * 1000, 25))
    with pytest.raises(ContextLengthExceeded, match="KV cache of 512"):
        engine.check(request("r", [97] * 500, 13))
    with pytest.raises(ContextLengthExceeded):
        engine.check(request("r", [97], 1 << 63))
    for prompt in ([], [-1], [160]):
        with pytest.raises(Invalid):
            engine.check(request("r", prompt))
    for sampling in (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"logprobs": 21},
        {"stop": ("",)},
        {"max_tokens": 0},
        {"top_k": -1},
        {"min_p": float("nan")},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": ((160, 1.0),)},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"stop_token_ids": frozenset({-1})},
        {"min_tokens": 9},
        {"prompt_logprobs": -1},
    ):
        with pytest.raises(Invalid) as refused:
            engine.check(request("r", [97], **sampling))
        assert refused.value.param in sampling
    engine.check(request("r", [97] * 500, 12))


def test_a_request_that_just_fits_the_cache_runs(tiny: CausalModel) -> None:
    engine = make_engine(tiny, kv_cache_tokens=64)
    got = run(engine, [request(f"r{index}", [97 + index] * 32, 32) for index in range(3)])
    assert all(len(each.token_ids) == 32 for each in got.values())


def test_numbers_that_are_not_finite_fail_one_request_and_touch_no_other(tmp_path: Path) -> None:
    healthy = [request(f"r{index}", [97 + 3 * index] * 20, 30) for index in range(3)]
    model = load_model(write_model(tmp_path))
    expected = [greedy_alone(model, each.prompt_token_ids, 30) for each in healthy]
    used = {97, 100, 103}.union(*expected)
    poison = next(token for token in range(160) if token not in used)
    sick = [request(f"sick{index}", [poison, 97, poison], 30) for index in range(3)]
    _poison(tmp_path, token=poison)

    engine = make_engine(load_model(tmp_path), kv_cache_tokens=256)
    got = run(engine, [sick[0], healthy[0], sick[1], healthy[1], healthy[2], sick[2]], every=2)

    for each in sick:
        assert isinstance(got[each.request_id].error, PlatformError)
    assert [got[each.request_id].token_ids for each in healthy] == expected
    assert engine.stats().free_blocks == engine.stats().total_blocks


def _poison(folder: Path, *, token: int) -> None:
    """Makes one token's embedding NaN; the head becomes a copy of what it was."""
    config = CONFIG | {"tie_word_embeddings": False}
    tensors = random_tensors(CONFIG)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][token] = float("nan")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
