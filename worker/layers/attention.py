"""Grouped-query self-attention over the paged KV cache."""

import torch

from worker.kernels.port import Angles, AttentionStep
from worker.layers.linear import Linear


class Attention:
    """Query, key, value and output projections around the attention (Ainslie et al. 2023)."""

    def __init__(
        self, layer: int, *, query: Linear, key: Linear, value: Linear, output: Linear
    ) -> None:
        self._layer = layer
        self._query = query
        self._key = key
        self._value = value
        self._output = output

    def __call__(self, x: torch.Tensor, step: AttentionStep, angles: Angles) -> torch.Tensor:
        """[tokens, hidden] to the same"""
        attended = step.attend(self._layer, self._query(x), self._key(x), self._value(x), angles)
        return self._output(attended)
