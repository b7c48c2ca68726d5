"""The arithmetic that models are made of, so that it can be done by other means than torch's own.

Every operation guarantees *row invariance*: the result for a token is the same bits whatever other
tokens are computed with it, in whichever order. Greedy output depends on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one sequence, from position `first` on, computed in one step.

    `blocks` is the sequence's block table; it covers the span. Keys and values of all positions
    before `first` are in the cache.
    """

    first: int
    count: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How large a KV cache is, and how many query heads read it."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_blocks: int
    block_size: int
    dtype: torch.dtype

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class Angles:
    """Every token's rotation, float32 [tokens, 1, head_dim].

    A head x becomes x * cos + roll(x, head_dim / 2) * sin: `sin` is negative in its first half.
    """

    cos: torch.Tensor
    sin: torch.Tensor


class AttentionStep(Protocol):
    """One step's tokens laid out over the cache; tokens are in the order of the spans."""

    @property
    def positions(self) -> torch.Tensor:
        """int64 [tokens]"""
        ...

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [tokens, heads * head_dim]
        key: torch.Tensor,  # [tokens, kv_heads * head_dim]
        value: torch.Tensor,  # [tokens, kv_heads * head_dim]
        angles: Angles,
    ) -> torch.Tensor:  # [tokens, heads * head_dim]
        """Rotates query and key, keeps key and value, attends to all positions up to each token.

        What a sequence has in the cache never reaches another's result, not even as NaN.
        """
        ...


class KVCache(Protocol):
    """Keys and values of every layer, in blocks."""

    def lay_out(self, spans: Sequence[Span]) -> AttentionStep: ...


class Kernels(Protocol):
    """One implementation, for one device."""

    @property
    def device(self) -> torch.device: ...

    def linear(
        self,
        x: torch.Tensor,  # [tokens, in]
        weight: torch.Tensor,  # [out, in]
        bias: torch.Tensor | None,  # [out]
    ) -> torch.Tensor:  # [tokens, out]
        ...

    def rms_norm(
        self,
        x: torch.Tensor,  # [tokens, hidden]
        weight: torch.Tensor,  # [hidden]
        epsilon: float,
    ) -> torch.Tensor:  # [tokens, hidden]
        """Root mean square norm (Zhang, Sennrich 2019), computed in float32."""
        ...

    def silu_mul(
        self,
        gate: torch.Tensor,  # [tokens, inner]
        up: torch.Tensor,  # [tokens, inner]
    ) -> torch.Tensor:  # [tokens, inner]
        """SwiGLU's gate (Shazeer 2020): silu(gate) * up."""
        ...

    def allocate_cache(self, shape: CacheShape) -> KVCache:
        """Reserves the cache; memory is taken as blocks are first written."""
        ...
