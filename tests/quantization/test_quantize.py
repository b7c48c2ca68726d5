"""Float weights rounded to 8 and 4 bits."""

import pytest
import torch

from worker.quantization.quantize import quantize
from worker.weights.quantized import GROUP, Bits, QuantizedWeight


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def relative_error(quantized: QuantizedWeight, weight: torch.Tensor) -> float:
    return float((quantized.dequantise() - weight).norm() / weight.norm())


@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (4, 0.08)])
def test_gaussian_weights_come_back_nearly(bits: Bits, most: float) -> None:
    weight = gaussian(96, 576)

    assert relative_error(quantize(weight, bits), weight) < most


def test_int8_keeps_the_largest_magnitude_of_each_row_exactly() -> None:
    weight = gaussian(5, 64)

    quantized = quantize(weight, 8)

    assert quantized.codes.abs().amax(1).tolist() == [127] * 5
    torch.testing.assert_close(quantized.dequantise().abs().amax(1), weight.abs().amax(1))


def test_int4_is_better_than_spreading_codes_from_least_to_greatest() -> None:
    weight = gaussian(64, 256)
    groups = weight.view(64, -1, GROUP)
    least, most = groups.aminmax(dim=2, keepdim=True)
    step = (most - least) / 15
    plain = (((groups - least) / step).round() * step + least).view_as(weight)

    plain_error = float((plain - weight).norm() / weight.norm())

    assert relative_error(quantize(weight, 4), weight) < 0.92 * plain_error


def test_weights_that_were_four_bits_come_back_as_they_were() -> None:
    codes = torch.randint(0, 16, (32, 128), generator=torch.Generator().manual_seed(0))
    codes[:, ::GROUP], codes[:, 1::GROUP] = 0, 15
    weight = codes * 0.0078125 - 0.0625

    importance = gaussian(128).square()
    assert torch.equal(quantize(weight, 4).dequantise(), weight)
    assert torch.equal(quantize(weight, 4, importance).dequantise(), weight)


def test_four_bits_are_nearest_where_inputs_are_large() -> None:
    weight, inputs = gaussian(64, 256), gaussian(400, 256, seed=1)
    inputs[:, ::GROUP] *= 10
    importance = inputs.square().mean(0)

    def error(quantized: QuantizedWeight) -> float:
        return float((inputs @ (quantized.dequantise() - weight).T).norm())

    assert error(quantize(weight, 4, importance)) < 0.6 * error(quantize(weight, 4))


def test_inputs_that_are_all_alike_change_nothing() -> None:
    weight, plain = gaussian(8, 95), quantize(gaussian(8, 95), 4)

    for alike in (torch.zeros(95), torch.full((95,), 3.0)):
        found = quantize(weight, 4, alike)
        assert torch.equal(found.codes, plain.codes)
        assert torch.equal(found.scale, plain.scale)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 95), (7, 5000)])
def test_any_shape_will_do(bits: Bits, shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)

    quantized = quantize(weight.to(torch.bfloat16), bits)

    assert quantized.shape == shape
    assert relative_error(quantized, weight) < 0.09


@pytest.mark.parametrize("bits", [8, 4])
def test_constant_rows_come_back_as_they_were(bits: Bits) -> None:
    weight = torch.tensor([[0.0], [0.5], [-3.0]]).expand(3, 64)

    torch.testing.assert_close(quantize(weight, bits).dequantise(), weight)


def test_an_outlier_costs_its_own_group_only() -> None:
    weight = gaussian(1, 96)
    weight[0, 40] = 100.0

    quantized = quantize(weight, 4).dequantise()

    assert float((quantized - weight)[0, :32].abs().max()) < 0.01
    assert float((quantized - weight)[0, 64:].abs().max()) < 0.01
    assert quantized[0, 40] == pytest.approx(100, rel=0.01)


def test_scales_and_offsets_are_what_kernels_keep_of_them() -> None:
    quantized = quantize(gaussian(8, 64) * 1e-3, 4)

    assert quantized.offset is not None
    assert torch.equal(quantized.scale, quantized.scale.half().float())
    assert torch.equal(quantized.offset, quantized.offset.half().float())
