"""Grouped-query self-attention over the paged KV cache."""

import torch

from worker.kernels.port import AttentionLayer, AttentionStep, Product, Prologue


class Attention:
    """Query, key, value and output projections around the attention (Ainslie et al. 2023)."""

    def __init__(self, layer: AttentionLayer, *, query_key_value: Product, output: Product) -> None:
        self._layer = layer
        self._query_key_value = query_key_value
        self._output = output

    def __call__(
        self,
        x: torch.Tensor,
        step: AttentionStep,
        rope: torch.Tensor,
        *,
        prologue: Prologue,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[tokens, hidden] to the same"""
        query_key_value = self._query_key_value(x, prologue=prologue)
        attended = step.attend(self._layer, query_key_value, rope)
        return self._output(attended, residual=residual)
