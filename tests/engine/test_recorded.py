"""Recorded steps give the decoder's tokens, and depend on tensors alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import Invalid
from tests.engine.flex import Tape, flex_model
from tests.engine.test_engine import prompts
from tests.engine.test_speculative_steps import make_engine as make_guessing_engine
from tests.engine.tiny import greedy_alone, load_model, make_engine, request, run, write_model
from worker.kernels.flex_attention import FlexKVCache
from worker.kernels.port import Span
from worker.models.recorded import Bucket, bucket_of

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_model(tmp_path_factory.mktemp("models") / "tiny", torch_dtype="float32")


@pytest.mark.parametrize(
    ("counts", "bucket"),
    [
        ([1], Bucket(1, 1)),
        ([1] * 2, Bucket(2, 1)),
        ([1] * 3, Bucket(4, 1)),
        ([1] * 32, Bucket(32, 1)),
        ([1] * 33, Bucket(64, 1)),
        ([1] * 257, None),
        ([5], Bucket(1, 8)),
        ([9], None),
        ([1, 4, 2], Bucket(4, 4)),
        ([8] + [1] * 7, Bucket(8, 8)),
        ([8] + [1] * 8, None),  # 128 tokens for 16
        ([2] + [1] * 31, Bucket(32, 2)),
        ([1, 1, 200], None),
    ],
)
def test_a_bucket_is_the_smallest_of_powers_of_two(counts: list[int], bucket: Bucket) -> None:
    assert bucket_of(counts) == bucket


def test_what_is_no_tensor_stays_on_the_tape_as_it_was() -> None:
    number, tensor = 1, torch.ones(1)
    replay = Tape()(lambda: tensor * 10 + number)
    number = 2
    tensor.fill_(3)
    assert replay().tolist() == [31]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"token_budget": 16, "max_batch_size": 5}, id="in chunks"),
        pytest.param({"kv_cache_tokens": 144, "block_size": 32}, id="preempting"),
    ],
)
def test_the_engine_gives_the_same_tokens_by_recorded_steps(
    folder: Path, settings: dict[str, Any]
) -> None:
    common = prompts(1, longest=60, seed=9)[0] * 60
    asked = [
        request(f"r{index}", [*common[:length], 97 + index % 3] * (1 + index % 2), 20)
        for index, length in enumerate([30, 50, 30, 17, 40, 33, 2])
    ]
    plain, tape = load_model(folder), Tape()
    expected = [greedy_alone(plain, each.prompt_token_ids, 20) for each in asked]
    recorded = flex_model(folder, tape)

    engine = make_engine(recorded, **settings)
    got = run(engine, asked, every=2)

    assert [got[each.request_id].token_ids for each in asked] == expected
    assert tape.num_replays > 20 > tape.num_recordings > 1


def test_guesses_are_checked_by_recorded_steps(folder: Path) -> None:
    tape = Tape()
    engine = make_guessing_engine(flex_model(folder, tape))

    got = run(engine, [request("r", [97] * 8, 64, logit_bias=((97, 100.0),))])

    assert got["r"].token_ids == [97] * 64
    assert engine.stats().accepted_tokens >= 50 and tape.num_replays >= 5


def test_what_fills_a_bucket_up_touches_no_block(folder: Path) -> None:
    model = flex_model(folder, Tape())
    cache = model.allocate_cache(num_blocks=12, block_size=16)
    plain = cache.plain
    assert isinstance(plain, FlexKVCache)
    for pool in plain.layers:
        pool.fill_(7.0)
    spans = [Span(17, 1, [4, 9]), Span(3, 2, [2]), Span(40, 1, [11, 0, 5])]
    for _ in range(2):  # recorded, then replayed
        states = model.states([1, 2, 3, 4], spans, [0, 1, 2, 3], cache)
        assert states.isfinite().all() and len(states) == 4
    written = {9 * 16 + 1, 2 * 16 + 3, 2 * 16 + 4, 5 * 16 + 8}
    for pool in plain.layers:
        changed = (pool != 7.0).any(-1).any(0).nonzero().flatten().tolist()
        assert set(changed) == written | {12 * 16}  # and scratch


def test_the_cache_is_as_large_as_the_device_has_room_for(folder: Path) -> None:
    model = flex_model(folder, free_bytes=1 << 20)
    engine = make_engine(model, kv_cache_tokens=None)
    assert engine.stats().total_blocks == int(0.8 * (1 << 20)) // (model.kv_bytes_per_token * 16)
    with pytest.raises(Invalid, match="1048576"):
        make_engine(model, kv_cache_tokens=1 << 20)


def test_recordings_belong_to_their_cache(folder: Path) -> None:
    tape = Tape()
    model = flex_model(folder, tape)
    prompt = prompts(1)[0]
    assert greedy_alone(model, prompt, 8) == greedy_alone(model, prompt, 8)
    assert tape.num_recordings == 2
