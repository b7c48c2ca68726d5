"""The native products beside textbook ones, and a token's bits in any company."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from tests.support.native import INSTRUCTION_SETS, native
from worker.kernels.native import library

pytestmark = native
KINDS = {16: 1e-2, 8: 3e-2, 4: 3e-2}  # and the error that coded tokens make at most, relative
SHAPES = [(960, 576), (576, 1536), (1, 8), (33, 40), (7, 96), (130, 31)]
NONE, NORM = range(2)
NO_GATE, SILU, GELU = range(3)


@pytest.fixture(autouse=True, params=[1, pytest.param(2, marks=pytest.mark.real)])
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.param)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set(INSTRUCTION_SETS[0])


class Weight:
    """A random weight as the kernels have it, and the numbers that it stands for."""

    def __init__(self, outputs: int, inputs: int, kind: int) -> None:
        generator = torch.Generator().manual_seed(outputs * inputs)
        ops = torch.ops.firstlight
        self.kind, self.outputs = kind, outputs
        self.scale: torch.Tensor | None = None
        weight = torch.randn(outputs, inputs, generator=generator) * 0.05
        if kind == 16:
            self.plain = weight.bfloat16().double()
            self.packed = ops.pack_bf16(weight.bfloat16())
        elif kind == 8:
            codes = torch.randint(-128, 128, (outputs, inputs), generator=generator)
            self.scale = torch.rand(outputs, generator=generator) * 1e-3
            self.plain = codes.double() * self.scale.double()[:, None]
            self.packed = ops.pack_int8(codes.to(torch.int8))
        else:
            groups = -(-inputs // 32)
            codes = torch.randint(0, 16, (outputs, inputs), generator=generator)
            scale = torch.rand(outputs, groups, generator=generator) * 0.01
            offset = -7.5 * scale
            scale, offset = scale.half().float(), offset.half().float()
            by_column = [each.repeat_interleave(32, 1)[:, :inputs] for each in (scale, offset)]
            self.plain = codes.double() * by_column[0].double() + by_column[1].double()
            self.packed = ops.pack_int4(codes.to(torch.uint8), scale, offset)

    def times(
        self,
        x: torch.Tensor,
        *,
        prologue: int = NONE,
        norm: torch.Tensor | None = None,
        gate: int = NO_GATE,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        got: torch.Tensor = torch.ops.firstlight.linear(
            x,
            self.packed,
            self.kind,
            self.outputs,
            self.scale,
            bias,
            prologue,
            norm,
            1e-5,
            gate,
            residual,
        )
        return got


def rows(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


def assert_near(got: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    assert got.shape == exact.shape
    error = (got.double() - exact).norm() / exact.norm()
    assert error < tolerance, float(error)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products_are_those_of_the_textbook(outputs: int, inputs: int, kind: int) -> None:
    weight = Weight(outputs, inputs, kind)
    for count in (1, 2, 5, 12, 140):
        x = rows(count, inputs)
        assert_near(weight.times(x), x.double() @ weight.plain.T, KINDS[kind])


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("sign", [1, -1])
def test_a_groups_sums_hold_the_largest_numbers(sign: int) -> None:
    outputs, inputs, ops = 40, 64, torch.ops.firstlight
    ones = torch.ones(outputs, inputs // 32)
    x = sign * torch.ones(5, inputs)  # every code is 127
    eights = ops.pack_int8(torch.full((outputs, inputs), -128, dtype=torch.int8))
    got = ops.linear(
        x, eights, 8, outputs, torch.ones(outputs), None, NONE, None, 1e-5, NO_GATE, None
    )
    torch.testing.assert_close(got, torch.full((5, outputs), -128.0 * inputs * sign))
    fours = ops.pack_int4(torch.full((outputs, inputs), 15, dtype=torch.uint8), ones, 0 * ones)
    got = ops.linear(x, fours, 4, outputs, None, None, NONE, None, 1e-5, NO_GATE, None)
    torch.testing.assert_close(got, torch.full((5, outputs), 15.0 * inputs * sign))


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [576, 40])
def test_what_goes_before_and_after_a_product(inputs: int, kind: int) -> None:
    weight = Weight(70, inputs, kind)
    norm, bias = rows(1, inputs, 1)[0], rows(1, 70, 2)[0]
    residual, x = rows(9, 70, 3), rows(9, inputs) * 3

    normed = F.rms_norm(x.double(), (inputs,), norm.double(), 1e-5)
    got = weight.times(x, prologue=NORM, norm=norm, bias=bias, residual=residual)
    expected = normed @ weight.plain.T + bias.double() + residual.double()
    assert_near(got, expected, KINDS[kind])


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [2 * 96, 2 * 35, 2 * 8])
def test_a_gate_joins_the_halves_of_what_comes_out(outputs: int, kind: int) -> None:
    weight, bias = Weight(outputs, 576, kind), rows(1, outputs, 2)[0]
    for count in (1, 3, 4, 31, 200):
        x = rows(count, 576)
        gates, up = (x.double() @ weight.plain.T + bias.double()).chunk(2, -1)
        silu = weight.times(x, gate=SILU, bias=bias)
        assert_near(silu, F.silu(gates) * up, KINDS[kind])
        gelu = weight.times(x, gate=GELU, bias=bias)
        assert_near(gelu, F.gelu(gates, approximate="tanh") * up, KINDS[kind])


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_has_the_same_bits_in_any_company(kind: int) -> None:
    weight, norm = Weight(1600, 576, kind), rows(1, 576, 1)[0]
    x, residual = rows(300, 576), rows(300, 1600, 2)

    def product(part: slice) -> torch.Tensor:
        return weight.times(x[part], prologue=NORM, norm=norm, residual=residual[part])

    whole = product(slice(300))
    for count in [*range(1, 27), 31, 32, 64, 65, 96, 97, 192, 193, 299]:
        assert torch.equal(product(slice(count)), whole[:count]), count
        assert torch.equal(product(slice(300 - count, 300)), whole[-count:]), count


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [2 * 800, 2 * 35])
def test_a_gated_token_has_the_same_bits_in_any_company(outputs: int, kind: int) -> None:
    weight, x = Weight(outputs, 576, kind), rows(200, 576)
    for gate in (SILU, GELU):
        whole = weight.times(x, gate=gate)
        for count in (1, 2, 3, 4, 5, 13, 32, 97, 199):
            assert torch.equal(weight.times(x[:count], gate=gate), whole[:count]), count
            assert torch.equal(weight.times(x[-count:], gate=gate), whole[-count:]), count


@pytest.mark.usefixtures("instruction_set")
def test_a_norm_by_itself() -> None:
    for inputs in (576, 40, 7):
        x, weight, residual = rows(90, inputs) * 4, rows(1, inputs, 1)[0], rows(90, inputs, 2)
        exact = F.rms_norm(x.double(), (inputs,), weight.double(), 1e-6)
        got = torch.ops.firstlight.rms_norm(x, weight, 1e-6, None)
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
        added = torch.ops.firstlight.rms_norm(x, weight, 1e-6, residual)
        torch.testing.assert_close(added, residual + got)
        for row in (0, 41, 89):
            alone = torch.ops.firstlight.rms_norm(x[row : row + 1], weight, 1e-6, None)
            assert torch.equal(alone[0], got[row])


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row(kind: int) -> None:
    weight, x = Weight(64, 96, kind), rows(12, 96)
    healthy = weight.times(x)
    x[3, 5], x[4], x[9, 95] = float("nan"), float("inf"), -float("inf")
    got = weight.times(x)
    others = [row for row in range(12) if row not in (3, 4, 9)]
    assert torch.equal(got[others], healthy[others])


def test_a_wrong_call_is_refused_before_it_reads_anything() -> None:
    weight = Weight(64, 96, 8)
    x = rows(2, 96)
    arguments: dict[str, Any] = {
        "x": x,
        "packed": weight.packed,
        "kind": 8,
        "outputs": 64,
        "scale": weight.scale,
        "bias": None,
        "prologue": NONE,
        "norm": None,
        "epsilon": 0.0,
        "gate": NO_GATE,
        "residual": None,
    }
    wrong: list[dict[str, Any]] = [
        {"x": rows(2, 64)},
        {"x": x.double()},
        {"x": rows(96, 2).T},
        {"outputs": 65},
        {"kind": 4},
        {"kind": 7},
        {"scale": None},
        {"scale": torch.ones(63)},
        {"bias": torch.ones(65)},
        {"prologue": NORM},
        {"prologue": 9},
        {"gate": 3},
        {"gate": SILU, "residual": rows(2, 64)},
        {"gate": SILU, "packed": Weight(63, 96, 8).packed, "outputs": 63, "scale": torch.ones(63)},
        {"residual": rows(3, 64)},
    ]
    torch.ops.firstlight.linear(**arguments)
    for change in wrong:
        with pytest.raises(RuntimeError):
            torch.ops.firstlight.linear(**(arguments | change))


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no kernels for sse2"):
        library.use_instruction_set("sse2")
