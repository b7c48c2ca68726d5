"""Vectors of prompts: the same bits however, and beside whatever, they are computed."""

import math
import random
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import ContextLengthExceeded, ExecutionTimeout, Invalid, PlatformError
from tests.engine.flex import Tape, flex_model
from tests.engine.tiny import greedy_alone, load_model, make_engine, request, write_model
from worker.engine.engine import Engine
from worker.engine.event import Embedded, Event, Failure, NewToken
from worker.engine.request import Embedding, EmbeddingRequest, Pooling, Request
from worker.kernels.port import Span
from worker.models.causal_model import CausalModel
from worker.models.decoder import Decoder

LETTERS = range(97, 123)
LONG = random.Random(5).choices(LETTERS, k=150)


def embedding(request_id: str, prompt: list[int], **how: Any) -> EmbeddingRequest:
    return EmbeddingRequest(request_id, tuple(prompt), **how)


def alone(model: CausalModel, prompt: list[int], pooling: Pooling) -> "array[float]":
    """The oracle: the whole prompt in one piece, its states added up one by one."""
    blocks = range(len(prompt) // 16 + 1)
    cache = model.allocate_cache(num_blocks=len(blocks), block_size=16)
    span = Span(0, len(prompt), blocks)
    states = model.normed(model.states(prompt, [span], range(len(prompt)), cache)).double()
    total = states[-1] if pooling == "last" else torch.stack([*states]).cumsum(0)[-1]
    return array("f", (total / total.norm()).tolist())


def run(engine: Engine, asked: list[Request], *, every: int = 0) -> dict[str, list[Event]]:
    """Submits all at once, or one every so many steps, and steps until nothing is left."""
    told: dict[str, list[Event]] = {each.request_id: [] for each in asked}
    waiting, steps = list(asked), 0
    while waiting or engine.has_work():
        while waiting and (every == 0 or steps % every == 0 or not engine.has_work()):
            one = waiting.pop(0)
            engine.check(one)
            if isinstance(one, EmbeddingRequest):
                engine.embed(one)
            else:
                engine.submit(one)  # type: ignore[arg-type]
            if every:
                break
        for event in engine.step():
            told[event.request_id].append(event)
        engine.check_integrity()
        steps += 1
    return told


def vector_of(events: list[Event]) -> "array[float]":
    [event] = events
    assert isinstance(event, Embedded)
    return event.embedding.vector


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"token_budget": 16, "max_batch_size": 4}, id="chunks of 16"),
        pytest.param({"prefix_cache": False, "token_budget": 37}, id="nothing shared"),
        pytest.param({"kv_cache_tokens": 176, "token_budget": 40}, id="little memory"),
    ],
)
def test_a_vector_is_the_same_bits_beside_answers_and_other_vectors(
    tiny: CausalModel, settings: dict[str, Any], pooling: Pooling
) -> None:
    prompts = [LONG, LONG[:70], [*LONG[:50], 97], [99], LONG]
    answers = [request(f"a{index}", LONG[index : index + 60], 12) for index in range(3)]
    asked = [embedding(f"e{index}", prompt) for index, prompt in enumerate(prompts)]
    mixed: list[Request] = [*asked[:2], *answers, *asked[2:]]

    engine = make_engine(tiny, pooling=pooling, **settings)
    told = run(engine, mixed, every=2)

    for each, prompt in zip(asked, prompts, strict=True):
        assert vector_of(told[each.request_id]) == alone(tiny, prompt, pooling)
    for each in answers:
        tokens = [event for event in told[each.request_id] if isinstance(event, NewToken)]
        expected = greedy_alone(tiny, each.prompt_token_ids, 12)
        assert [event.choice.token_id for event in tokens] == expected
    stats = engine.stats()
    assert stats.free_blocks == stats.total_blocks
    assert stats.prompt_tokens == sum(len(each.prompt_token_ids) for each in mixed)
    assert stats.generated_tokens == 3 * 12
    assert (stats.running, stats.waiting) == (0, 0)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_preempted_vector_is_the_same_bits(tiny: CausalModel, pooling: Pooling) -> None:
    engine = make_engine(tiny, pooling=pooling, kv_cache_tokens=160, token_budget=48)
    patient = embedding("e", LONG, priority=1)

    told = run(engine, [patient, request("urgent", LONG[20:120], 20)], every=1)

    assert engine.stats().preemptions == 1
    assert len(told["urgent"]) == 20
    assert vector_of(told["e"]) == alone(tiny, LONG, pooling)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_what_an_answer_left_in_the_cache_serves_the_last_state_and_not_the_mean(
    tiny: CausalModel, pooling: Pooling
) -> None:
    engine = make_engine(tiny, pooling=pooling)
    run(engine, [request("a", LONG, 1)])

    [event] = run(engine, [embedding("e", LONG)])["e"]

    cached = 144 if pooling == "last" else 0
    assert event == Embedded("e", Embedding(alone(tiny, LONG, pooling), cached))
    assert engine.stats().cached_prompt_tokens == cached


def test_the_mean_leaves_in_the_cache_what_answers_can_use(tiny: CausalModel) -> None:
    engine = make_engine(tiny, pooling="mean")
    run(engine, [embedding("e", LONG)])

    first = run(engine, [request("a", LONG, 1)])["a"][0]

    assert isinstance(first, NewToken)
    assert first.cached_tokens == 144


def test_a_vector_has_a_length_of_one(tiny: CausalModel) -> None:
    vector = vector_of(run(make_engine(tiny), [embedding("e", LONG)])["e"])

    assert len(vector) == make_engine(tiny).embedding_size == 64
    assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-6)


def test_a_prompt_may_fill_the_whole_context_and_the_whole_cache(tiny: CausalModel) -> None:
    engine = make_engine(tiny, kv_cache_tokens=160)
    whole = [*LONG, *LONG][:160]

    assert vector_of(run(engine, [embedding("e", whole)])["e"]) == alone(tiny, whole, "last")
    with pytest.raises(ContextLengthExceeded):
        engine.check(embedding("e", [*whole, 97]))
    with pytest.raises(Invalid):
        engine.check(embedding("e", []))
    with pytest.raises(Invalid):
        engine.check(embedding("e", [97, 160]))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_who_is_aborted_leaves_nothing(tiny: CausalModel, pooling: Pooling) -> None:
    engine = make_engine(tiny, pooling=pooling, token_budget=16)
    engine.embed(embedding("e", LONG))
    engine.embed(embedding("waits", LONG))
    engine.step()

    engine.abort("e")
    engine.abort("waits")
    engine.abort("waits")

    engine.check_integrity()
    assert not engine.has_work()
    assert engine.stats().free_blocks == engine.stats().total_blocks
    assert vector_of(run(engine, [embedding("e", LONG)])["e"]) == alone(tiny, LONG, pooling)


def test_a_deadline_ends_a_vector(tiny: CausalModel) -> None:
    now = [0.0]
    engine = make_engine(tiny, token_budget=16, clock=lambda: now[0])
    engine.embed(embedding("e", LONG, deadline=1.0))
    engine.step()
    now[0] = 1.0

    [failure] = engine.step()

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, ExecutionTimeout)
    assert not engine.has_work()
    engine.check_integrity()


def test_numbers_that_are_not_finite_end_their_vector_and_no_other(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path, torch_dtype="float32"))
    assert isinstance(model, Decoder)
    model._embedding = model._embedding.clone()
    model._embedding[99] = math.nan

    told = run(make_engine(model), [embedding("bad", [98, 99]), embedding("good", [98, 98])])

    [failure] = told["bad"]
    assert isinstance(failure, Failure)
    assert type(failure.error) is PlatformError
    assert vector_of(told["good"]) == alone(model, [98, 98], "last")


@pytest.mark.real
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_recorded_steps_give_the_same_vectors(tmp_path: Path, pooling: Pooling) -> None:
    model = flex_model(write_model(tmp_path, torch_dtype="float32"), Tape())
    plain = load_model(tmp_path)
    asked = [embedding(f"e{length}", LONG[:length]) for length in (1, 8, 9, 65, 150)]
    answers = [request(f"a{index}", LONG[index:], 12) for index in range(2)]

    told = run(make_engine(model, pooling=pooling, token_budget=16), [*answers, *asked], every=2)

    for each in asked:
        expected = list(alone(plain, list(each.prompt_token_ids), pooling))
        assert list(vector_of(told[each.request_id])) == pytest.approx(expected, abs=1e-5)
