"""Computes a model with some tokens while it is built, to see what its weights will multiply."""

import random
from collections.abc import Callable, Sequence

import torch

from worker.kernels.port import AttentionStep, Kernels, KVCache, Norm, Span

BLOCK = 16
REHEARSED_TOKENS = 64
# Of the first tokens: sequences begin with outliers that every other token just looks back at.
_UNSEEN = 4


def rehearsed(vocabulary: int, tokens: int) -> list[int]:
    """The ids of so many tokens, the same in every process."""
    dice = random.Random(0)  # torch's generators need more of torch than a replica loads
    return [dice.randrange(vocabulary) for _ in range(tokens)]


class Rehearsal:
    """The tokens as they are after the layers that are there so far.

    They are random, always the same: what is large in a model's inner channels depends on the
    weights far more than on the text.
    """

    def __init__(
        self,
        kernels: Kernels,
        cache: KVCache,
        ropes: Sequence[torch.Tensor],
        embed: Callable[[torch.Tensor], torch.Tensor],
        *,
        vocabulary: int,
        tokens: int,
    ) -> None:
        """`cache` has blocks of 16 for the tokens; `ropes` covers them."""
        self._kernels = kernels
        self._ropes = ropes
        self._step = cache.lay_out([Span(0, tokens, range(-(-tokens // BLOCK)))])
        self._x = embed(torch.tensor(rehearsed(vocabulary, tokens)))

    def attend(
        self,
        layer: Callable[[torch.Tensor, AttentionStep, Sequence[torch.Tensor]], torch.Tensor],
    ) -> None:
        """Goes through the attention of the next layer."""
        self._x = layer(self._x, self._step, self._ropes)

    def feed(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Goes through the rest of that layer."""
        self._x = layer(self._x)

    def importance(self, norm: Norm) -> torch.Tensor | None:
        """Mean squares of the channels after `norm`; None where their sum is no number."""
        seen = self._kernels.norm(self._x, norm)[_UNSEEN:].float()
        squares = seen.square().mean(0)
        return squares if bool(squares.sum().isfinite()) else None
