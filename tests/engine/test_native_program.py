"""A model's layers as one native call."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from tests.engine.tiny import load_model, write_model
from tests.support.native import native
from worker.kernels.native_program import Recording
from worker.kernels.port import Span
from worker.models.causal_model import CausalModel

pytestmark = native

FEWEST_BITS = {"quantization": "int4", "kv_cache_dtype": "int8"}
TOKENS = [5, 9, 3, 77, 21, 8, 140, 2, 6]


def logits(model: CausalModel, *counts: int) -> torch.Tensor:
    """Of the tokens in a new cache, computed in steps of so many."""
    cache = model.allocate_cache(num_blocks=4, block_size=16, lanes=1)
    rows = []
    first = 0
    for count in counts:
        span = Span(first, count, [2, 0])
        rows.append(model.logits(TOKENS[first : first + count], [span], list(range(count)), cache))
        first += count
    return torch.cat(rows)


def program() -> Any:
    return torch.classes.firstlight.Program()


@pytest.mark.parametrize(
    "settings",
    [{}, {"dtype": "bfloat16"}, {"kv_cache_dtype": "int8"}, {"quantization": "int8"}, FEWEST_BITS],
    ids=str,
)
def test_it_has_the_bits_of_its_operations_in_any_step_and_any_cache(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = write_model(tmp_path, attention_bias=True)
    asked = EngineSettings(**settings)
    one_by_one = logits(load_model(folder, asked), len(TOKENS))  # a model's first step is

    model = load_model(folder, asked)
    logits(model, 2)
    assert torch.equal(logits(model, len(TOKENS)), one_by_one)
    assert torch.equal(logits(model, 4, 1, 1, 3), one_by_one)


def test_a_failed_first_step_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    expected = logits(load_model(folder), len(TOKENS))
    model = load_model(folder)
    cache = model.allocate_cache(num_blocks=4, block_size=16, lanes=1)
    with pytest.raises(RuntimeError, match="block"):
        model.logits(TOKENS[:2], [Span(0, 2, [9])], [1], cache)

    assert torch.equal(logits(model, len(TOKENS)), expected)
    assert torch.equal(logits(model, len(TOKENS)), expected)


def test_no_result_is_kept_for_the_recording() -> None:
    """A prompt of 256 tokens has 1.4 GiB of them in a model of 8 billion weights."""
    x, norm = torch.zeros(1, 8), (torch.ones(8), 1e-5)
    recording = Recording(x, [])
    first, second = torch.zeros(1, 8), torch.zeros(1, 8)
    recording.rms_norm(x, norm, None, first)
    recording.rms_norm(first, norm, None, second)
    kept = weakref.ref(first)

    del first

    assert kept() is None
    assert recording.ends_with(second)


def test_what_no_operation_made_is_no_operations_input() -> None:
    recording = Recording(torch.zeros(1, 8), [])
    norm = (torch.ones(8), 1e-5)
    with pytest.raises(KeyError):
        recording.rms_norm(torch.zeros(1, 8), norm, None, torch.zeros(1, 8))


def test_an_operation_uses_earlier_results_only() -> None:
    with pytest.raises(RuntimeError, match="operation 0 uses result 1"):
        program().rms_norm(1, torch.ones(8), 1e-5, -1)


def test_results_are_kept_as_long_as_they_are_used() -> None:
    made, weight = program(), torch.ones(8)
    first = made.rms_norm(0, weight, 1e-5, -1)
    second = made.rms_norm(first, weight, 1e-5, 0)
    made.rms_norm(second, weight, 1e-5, first)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros(0, dtype=torch.int32)

    result = made.run(x, [], *[nothing] * 4, [], 1, 1, 16, 16, False)

    def norm(values: torch.Tensor) -> torch.Tensor:
        return torch.ops.firstlight.rms_norm.default(values, weight, 1e-5, None)

    once = norm(x)
    assert torch.equal(result, once + norm(x + norm(once)))


def test_a_program_of_nothing_is_refused() -> None:
    nothing = torch.zeros(0, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="no operations"):
        program().run(torch.zeros(1, 8), [], *[nothing] * 4, [], 1, 1, 16, 16, False)
