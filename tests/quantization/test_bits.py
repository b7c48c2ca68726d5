"""Which layers get 4 bits: those that bear it, and those that had no more before."""

from pathlib import Path

import pytest
import torch

from tests.quantization.checkpoints import stored
from worker.parallel.share import Cut, whole
from worker.quantization.quantize import quantize
from worker.quantization.reader import WeightReader
from worker.weights.quantized import QuantizedWeight

SHAPE = (96, 128)
ALL = whole(128)


def plain(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def once_of_four_bits(seed: int) -> torch.Tensor:
    return quantize(plain(seed), 4).dequantise().to(torch.bfloat16)


def bits(reader: WeightReader, *names: str, inputs: Cut = ALL) -> list[int]:
    layers = [(name, [whole(96)]) for name in names]
    found = reader.linears(layers, inputs, torch.bfloat16)
    assert all(isinstance(each, QuantizedWeight) for each in found)
    return [each.bits for each in found if isinstance(each, QuantizedWeight)]


def test_layers_that_four_bits_would_hurt_are_rounded_to_8(tmp_path: Path) -> None:
    names = ("lm_head", "a.q_proj", "a.o_proj", "a.gate_proj", "a.up_proj", "a.down_proj")
    tensors = {f"{name}.weight": plain(seed) for seed, name in enumerate(names)}
    reader = WeightReader(stored(tmp_path, tensors), None, 4)

    assert [bits(reader, name) for name in names] == [[8], [8], [8], [4], [4], [8]]


def test_layers_that_had_four_bits_once_keep_them_exactly(tmp_path: Path) -> None:
    weight = once_of_four_bits(0)
    reader = WeightReader(stored(tmp_path, {"a.down_proj.weight": weight}), None, 4)

    (found,) = reader.linears([("a.down_proj", [whole(96)])], ALL, torch.bfloat16)

    assert isinstance(found, QuantizedWeight) and found.bits == 4
    error = (found.dequantise() - weight.float()).norm() / weight.float().norm()
    assert error < 0.003  # bfloat16 has 8 bits of a number: 0.2 % between neighbours


def test_layers_of_one_product_have_as_many_bits_as_one_of_them_needs(tmp_path: Path) -> None:
    tensors = {"a.q_proj.weight": once_of_four_bits(0), "a.v_proj.weight": plain(1)}
    reader = WeightReader(stored(tmp_path, tensors), None, 4)

    assert bits(reader, "a.q_proj", "a.v_proj") == [8, 8]
    assert bits(reader, "a.q_proj") == [4]


@pytest.mark.parametrize(("columns", "expected"), [(range(32, 128), [4]), (range(16, 112), [8])])
def test_a_rank_whose_columns_divide_groups_rounds_them_to_8(
    tmp_path: Path, columns: range, expected: list[int]
) -> None:
    weights = stored(tmp_path, {"a.o_proj.weight": once_of_four_bits(0)})

    assert bits(WeightReader(weights, None, 4), "a.o_proj", inputs=Cut(128, columns)) == expected


def test_eight_bits_are_eight_bits(tmp_path: Path) -> None:
    weights = stored(tmp_path, {"a.up_proj.weight": once_of_four_bits(0)})

    assert bits(WeightReader(weights, None, 8), "a.up_proj") == [8]
