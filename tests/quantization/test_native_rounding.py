"""The native operators that round weights, beside the plain functions."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.native import INSTRUCTION_SETS, native
from worker.kernels.native import library
from worker.quantization.int4 import by_group, quantize_int4
from worker.quantization.int8 import quantize_int8
from worker.quantization.quantize import quantize
from worker.weights.quantized import Bits, QuantizedWeight

pytestmark = native
SHAPES = [(1, 1), (3, 33), (2, 95), (130, 576), (17, 5000)]


@pytest.fixture(autouse=True, params=[1, pytest.param(2, marks=pytest.mark.real)])
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.param)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set(INSTRUCTION_SETS[0])


def gaussian(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0] * shape[1])
    return (torch.randn(shape, generator=generator) * 0.05 + 0.01).to(dtype)


def error(quantized: QuantizedWeight, weight: torch.Tensor) -> float:
    return float((quantized.dequantise() - weight).norm() / weight.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_are_those_of_the_plain_function(
    shape: tuple[int, int], dtype: torch.dtype, instruction_set: str
) -> None:
    weight = gaussian(shape, dtype)
    weight[shape[0] // 2] = 0

    found, plain = quantize(weight, 8), quantize_int8(weight)

    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.scale, plain.scale)


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_four_bits_are_those_of_the_plain_function_but_where_two_cuts_are_as_good(
    shape: tuple[int, int], dtype: torch.dtype, is_weighted: bool, instruction_set: str
) -> None:
    weight = gaussian(shape, dtype)
    importance = gaussian((1, shape[1]), torch.float32)[0].square() if is_weighted else None

    found = quantize(weight, 4, importance)
    plain = quantize_int4(weight, None if importance is None else by_group(importance))

    assert found.offset is not None and plain.offset is not None
    assert float((found.codes != plain.codes).float().mean()) < 1e-3
    assert float((found.scale != plain.scale).float().mean()) < 0.02  # sums in another order
    assert error(found, weight) == pytest.approx(error(plain, weight), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_codes_alone_and_by_any_instructions(
    shape: tuple[int, int], bits: Bits, instruction_set: str
) -> None:
    weight = gaussian(shape, torch.bfloat16)
    importance = gaussian((1, shape[1]), torch.float32)[0].square()

    found = quantize(weight[-1:], bits, importance)

    library.use_instruction_set(INSTRUCTION_SETS[-1])
    whole = quantize(weight, bits, importance)
    assert torch.equal(found.codes, whole.codes[-1:])
    assert torch.equal(found.scale, whole.scale[-1:])
    if found.offset is not None and whole.offset is not None:
        assert torch.equal(found.offset, whole.offset[-1:])
