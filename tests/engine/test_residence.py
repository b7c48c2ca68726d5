"""Where weights are. There is no GPU here: they are moved to other memory of the CPU."""

import gc
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType

import pytest
import torch

from tests.engine.tiny import load_model, write_model
from worker.kernels.port import Span
from worker.models.causal_model import CausalModel
from worker.models.residence import move, tensors_below


@pytest.fixture(params=["bfloat16", "float32"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> CausalModel:
    return load_model(write_model(tmp_path / "tiny", torch_dtype=request.param))


def logits(model: CausalModel) -> torch.Tensor:
    cache = model.allocate_cache(num_blocks=2, block_size=16)
    return model.logits([1, 2, 3], [Span(0, 3, [0])], [2], cache)


def storages(tensors: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def whatever_it_refers_to(thing: object) -> list[torch.Tensor]:
    """As the garbage collector sees it: the oracle of `tensors_below`."""
    seen: dict[int, object] = {}
    ahead = [thing]
    while ahead:
        one = ahead.pop()
        skipped = ModuleType | FunctionType | BuiltinFunctionType | type
        if id(one) not in seen and not isinstance(one, skipped):
            seen[id(one)] = one
            ahead += [] if isinstance(one, torch.Tensor) else gc.get_referents(one)
    return [one for one in seen.values() if isinstance(one, torch.Tensor)]


def test_every_tensor_that_a_model_holds_is_found_once(model: CausalModel) -> None:
    logits(model)  # rotary tables are made at their first use

    found = tensors_below(model)

    assert len(found) > 15
    assert sorted(map(id, found)) == sorted(map(id, whatever_it_refers_to(model)))


def test_a_model_whose_weights_were_moved_computes_the_same(model: CausalModel) -> None:
    before = logits(model)
    tensors = tensors_below(model)
    old, new = storages(tensors), []

    def copy(data: torch.Tensor) -> torch.Tensor:
        new.append(data.clone())
        return new[-1]

    with torch.inference_mode():
        move(tensors, copy)

    assert storages(tensors_below(model)) == storages(new)
    assert len(new) == len(old)  # what shared memory shares it again
    assert torch.equal(logits(model), before)


def test_a_model_on_the_cpu_stays_where_it_is(model: CausalModel) -> None:
    before = [tensor.data_ptr() for tensor in tensors_below(model)]

    model.to_host()
    model.to_device()

    assert [tensor.data_ptr() for tensor in tensors_below(model)] == before
