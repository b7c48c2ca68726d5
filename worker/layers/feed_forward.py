"""The gated feed-forward layer."""

import torch

from worker.kernels.port import Kernels
from worker.layers.linear import Linear


class FeedForward:
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)"""

    def __init__(self, kernels: Kernels, *, gate: Linear, up: Linear, down: Linear) -> None:
        self._kernels = kernels
        self._gate = gate
        self._up = up
        self._down = down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to the same"""
        return self._down(self._kernels.silu_mul(self._gate(x), self._up(x)))
