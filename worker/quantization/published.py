"""Reads the linear layers of published quantised checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from infra.errors import SourceInvalid
from worker.quantization.quantize import quantize
from worker.quantization.scheme import Layout, Scheme
from worker.weights.loader import Weights
from worker.weights.quantized import GROUP, Bits, QuantizedWeight

Shape = tuple[int, int]

# Which of the eight numbers of AWQ's int32 the n-th column is, low bits first.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def is_quantized(weights: Weights, scheme: Scheme, name: str) -> bool:
    """Whether the files have the layer's weight as `scheme` says, and not as floats."""
    match scheme.layout:
        case Layout.CODES:
            return weights.format(f"{name}.weight") == "I8"
        case Layout.PACKED:
            return f"{name}.weight_packed" in weights
        case Layout.GPTQ | Layout.AWQ:
            return f"{name}.qweight" in weights


def read_quantized(weights: Weights, scheme: Scheme, name: str, shape: Shape) -> QuantizedWeight:
    """The weight of a quantised layer, [outputs, inputs].

    8 bits with a scale a row, and 4 bits in groups of 32 or multiples of it, keep their codes.
    Anything else is rounded anew to 8 bits with a scale a row: 8 bits in groups or with zero
    points, smaller groups, and columns in the order of activations, whose groups lie scattered.
    Raises SourceInvalid when tensors are missing or do not fit.
    """
    return _READERS[scheme.layout](_Files(weights, scheme, name, shape)).rounded()


@dataclass(frozen=True, slots=True)
class _Codes:
    """w = scale * (code - zero), scale and zero being those of the column's group."""

    bits: Bits
    codes: torch.Tensor  # [outputs, inputs] uint8
    scale: torch.Tensor  # [outputs, groups] float32
    zero: torch.Tensor  # [outputs, groups] float32
    group_size: int
    order: torch.Tensor | None  # [inputs], each column's group, where they lie scattered

    def rounded(self) -> QuantizedWeight:
        if self.order is None and self.bits == 8 and self._is_symmetric():
            codes = (self.codes.to(torch.int16) - 128).to(torch.int8)
            return QuantizedWeight(8, codes, self.scale.contiguous(), None)
        inputs = self.codes.shape[1]
        is_one_group = self.group_size >= inputs
        if self.order is None and self.bits == 4 and (is_one_group or self.group_size % GROUP == 0):
            groups = torch.arange(0, inputs, GROUP) // self.group_size
            scale = self.scale[:, groups].half().float()
            offset = (self.scale * -self.zero)[:, groups].half().float()
            return QuantizedWeight(4, self.codes, scale, offset)
        return quantize(self._dequantised(), 8)

    def _is_symmetric(self) -> bool:
        return self.scale.shape[1] == 1 and bool((self.zero == 128).all())

    def _dequantised(self) -> torch.Tensor:
        groups = self.order
        if groups is None:
            groups = torch.arange(self.codes.shape[1]) // self.group_size
        return (self.codes.float() - self.zero[:, groups]) * self.scale[:, groups]


class _Files:
    """The tensors of one layer."""

    def __init__(self, weights: Weights, scheme: Scheme, name: str, shape: Shape) -> None:
        self.scheme = scheme
        self.name = name
        self.outputs, self.inputs = shape
        self.group_size = scheme.group_size or self.inputs
        self._weights = weights
        if self.inputs % self.group_size:
            raise SourceInvalid(f"groups of {self.group_size} do not divide the rows of {name!r}")
        self.groups = self.inputs // self.group_size

    def __contains__(self, part: str) -> bool:
        return f"{self.name}.{part}" in self._weights

    def floats(self, part: str, *shape: int) -> torch.Tensor:
        return self._weights.take(f"{self.name}.{part}", shape, torch.float32)

    def integers(self, part: str, stored: str, *shape: int) -> torch.Tensor:
        name = f"{self.name}.{part}"
        found = self._weights.take_integers(name, shape)
        if self._weights.format(name) != stored:
            raise SourceInvalid(f"{name!r} is stored as {self._weights.format(name)}")
        return found

    def order(self, part: str) -> torch.Tensor | None:
        """Each column's group; None where they follow each other as usual."""
        if part not in self:
            return None
        order = self.integers(part, "I32", self.inputs).long()
        if torch.equal(order, torch.arange(self.inputs) // self.group_size):
            return None
        if int(order.min()) < 0 or int(order.max()) >= self.groups:
            raise SourceInvalid(f"{f'{self.name}.{part}'!r} names groups that there are not")
        return order

    def words(self, numbers: int) -> int:
        """How many int32 hold so many numbers."""
        return -(-numbers * self.scheme.bits // 32)


def _read_codes(files: _Files) -> _Codes:
    codes = files.integers("weight", "I8", files.outputs, files.inputs)
    scale = files.floats("weight_scale", files.outputs, files.groups)
    return _Codes(
        bits=8,
        codes=(codes.to(torch.int16) + 128).to(torch.uint8),
        scale=scale,
        zero=_plain_zero(files, scale),
        group_size=files.group_size,
        order=files.order("weight_g_idx"),
    )


def _read_packed(files: _Files) -> _Codes:
    """Rows packed low bits first, codes and zero points from 0 on."""
    outputs, inputs, groups = files.outputs, files.inputs, files.groups
    stated = files.integers("weight_shape", "I64", 2).tolist()
    if stated != [outputs, inputs]:
        raise SourceInvalid(
            f"{files.name!r} has shape {stated}, where config.json asks for {[outputs, inputs]}"
        )
    packed = files.integers("weight_packed", "I32", outputs, files.words(inputs))
    scale = files.floats("weight_scale", outputs, groups)
    bits = files.scheme.bits
    if "weight_zero_point" in files:
        by_column = files.integers("weight_zero_point", "I32", files.words(outputs), groups)
        zero = _unpacked(by_column.t(), bits)[:, :outputs].t().float()
    else:
        zero = torch.full_like(scale, 1 << (bits - 1))
    return _Codes(
        bits=bits,
        codes=_unpacked(packed, bits)[:, :inputs],
        scale=scale,
        zero=zero,
        group_size=files.group_size,
        order=files.order("weight_g_idx"),
    )


def _read_gptq(files: _Files) -> _Codes:
    """Columns packed low bits first."""
    outputs, inputs, groups = files.outputs, files.inputs, files.groups
    bits = files.scheme.bits
    packed = files.integers("qweight", "I32", files.words(inputs), outputs)
    zeros = _unpacked(files.integers("qzeros", "I32", groups, files.words(outputs)), bits)
    if files.scheme.stores_zero_less_one:
        zeros = (zeros + 1).bitwise_and_((1 << bits) - 1)
    return _Codes(
        bits=bits,
        codes=_unpacked(packed.t(), bits)[:, :inputs],
        scale=files.floats("scales", groups, outputs).t(),
        zero=zeros[:, :outputs].t().float(),
        group_size=files.group_size,
        order=files.order("g_idx"),
    )


def _read_awq(files: _Files) -> _Codes:
    """Outputs packed by eight, the even ones before the odd ones."""
    outputs, inputs, groups = files.outputs, files.inputs, files.groups
    if outputs % 8:
        raise SourceInvalid(f"{files.name!r} has {outputs} outputs, which AWQ cannot pack")
    codes = _awq_columns(files.integers("qweight", "I32", inputs, outputs // 8))
    zeros = _awq_columns(files.integers("qzeros", "I32", groups, outputs // 8))
    return _Codes(
        bits=4,
        codes=codes.t().contiguous(),
        scale=files.floats("scales", groups, outputs).t(),
        zero=zeros.t().float(),
        group_size=files.group_size,
        order=None,
    )


def _awq_columns(packed: torch.Tensor) -> torch.Tensor:
    by_word = _unpacked(packed, 4).view(*packed.shape, len(_AWQ_PLACES))
    return by_word[..., list(_AWQ_PLACES)].flatten(1)


def _plain_zero(files: _Files, scale: torch.Tensor) -> torch.Tensor:
    if "weight_zero_point" not in files:
        return torch.full_like(scale, 128)
    return files.integers("weight_zero_point", "I8", *scale.shape).float() + 128


def _unpacked(packed: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Numbers of `bits` bits in each int32 of the rows, low bits first; uint8."""
    numbers = packed.contiguous().view(torch.uint8)  # little-endian
    if bits == 8:
        return numbers
    return torch.stack((numbers & 15, numbers >> 4), -1).flatten(1)


_READERS: dict[Layout, Callable[[_Files], _Codes]] = {
    Layout.CODES: _read_codes,
    Layout.PACKED: _read_packed,
    Layout.GPTQ: _read_gptq,
    Layout.AWQ: _read_awq,
}
