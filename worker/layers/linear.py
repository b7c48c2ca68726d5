"""A linear layer; behind this class weights may be kept in other formats."""

import torch

from worker.kernels.port import Kernels


class Linear:
    """x W^T + b"""

    def __init__(
        self, kernels: Kernels, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        """`weight` [out, in], `bias` [out]; neither is copied."""
        self._kernels = kernels
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in] to [tokens, out]"""
        return self._kernels.linear(x, self._weight, self._bias)
