"""A linear layer's weight in 8 or 4 bits, in the two forms that kernels compute with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from infra.errors import UnsupportedModel

GROUP = 32  # columns that share a scale at 4 bits; the last group of a row may be shorter
INT8_MOST = 127
INT4_MOST = 15

Bits = Literal[8, 4]


@dataclass(frozen=True, eq=False, slots=True)
class QuantizedWeight:
    """[outputs, inputs] as codes: w = scale * code + offset.

    At 8 bits a row has one scale and no offset, codes are int8 from -127 to 127. At 4 bits every
    `GROUP` columns have a scale and an offset, both float16 numbers, and codes are uint8 from 0 to
    15, one a byte.
    """

    bits: Bits
    codes: torch.Tensor  # [outputs, inputs]
    scale: torch.Tensor  # [outputs, groups] float32
    offset: torch.Tensor | None  # [outputs, groups] float32

    def __post_init__(self) -> None:
        outputs, inputs = self.codes.shape
        groups = 1 if self.bits == 8 else num_groups(inputs)
        assert self.codes.dtype == (torch.int8 if self.bits == 8 else torch.uint8)
        assert self.scale.shape == (outputs, groups) and self.scale.dtype == torch.float32
        if self.bits == 8:
            assert self.offset is None
        else:
            assert self.offset is not None and self.offset.shape == self.scale.shape

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)"""
        outputs, inputs = self.codes.shape
        return outputs, inputs

    def part(self, rows: Sequence[range], columns: range) -> "QuantizedWeight":
        """Some rows, and columns that begin and end where groups do.

        Raises UnsupportedModel for other columns.
        """
        ends_within = columns.stop % GROUP and columns.stop != self.codes.shape[1]
        if self.offset is not None and (columns.start % GROUP or ends_within):
            raise UnsupportedModel(
                f"4-bit weights cannot be divided at column {columns.start} or {columns.stop}: "
                f"{GROUP} columns share a scale",
                hint="lower engine.tensor_parallel",
            )
        groups = slice(None)
        if self.offset is not None:
            groups = slice(columns.start // GROUP, num_groups(columns.stop))

        def kept(values: torch.Tensor, which: slice) -> torch.Tensor:
            return torch.cat([values[each.start : each.stop, which] for each in rows])

        return QuantizedWeight(
            self.bits,
            kept(self.codes, slice(columns.start, columns.stop)),
            kept(self.scale, groups),
            None if self.offset is None else kept(self.offset, groups),
        )

    def dequantise(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight as floats; [outputs, inputs]."""
        values = self.codes.to(torch.float32)
        if self.offset is None:
            return values.mul_(self.scale).to(dtype)
        inputs = values.shape[1]
        scale = self.scale.repeat_interleave(GROUP, 1)[:, :inputs]
        offset = self.offset.repeat_interleave(GROUP, 1)[:, :inputs]
        return values.mul_(scale).add_(offset).to(dtype)


def num_groups(inputs: int) -> int:
    """Groups of a row at 4 bits."""
    return -(-inputs // GROUP)


def packed_bytes(bits: Bits, outputs: int, inputs: int) -> int:
    """Bytes of a packed weight, scales and offsets included."""
    if bits == 8:
        return outputs * (inputs + 4)
    return outputs * num_groups(inputs) * (GROUP // 2 + 4)
