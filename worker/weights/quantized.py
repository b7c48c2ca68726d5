"""A weight matrix in whole numbers, with scales."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedWeight:
    """w = scale * code (+ offset); columns share scale and offset by groups of in / groups.

    `codes` [out, in] are int8 for 8 bits and uint8 from 0 to 15 for 4; `scale` and `offset`
    float32 [out, groups].
    """

    bits: int
    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.codes.shape
        return outputs, inputs

    def dequantise(self) -> torch.Tensor:
        """float32 [out, in]"""
        outputs, groups = self.scale.shape
        grouped = self.codes.view(outputs, groups, -1).float() * self.scale.unsqueeze(-1)
        if self.offset is not None:
            grouped += self.offset.unsqueeze(-1)
        return grouped.view(self.codes.shape)
