"""The gated feed-forward layer."""

import torch

from worker.kernels.port import Gate, Product, Prologue


class FeedForward:
    """down(activation(gate(x)) * up(x)) (Shazeer 2020)"""

    def __init__(self, gate: Gate, *, gate_up: Product, down: Product) -> None:
        self._gate = gate
        self._gate_up = gate_up
        self._down = down

    def __call__(
        self, x: torch.Tensor, *, prologue: Prologue, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[tokens, hidden] to the same"""
        gated = self._gate_up(x, prologue=prologue, gate=self._gate)
        return self._down(gated, residual=residual)
