"""The arithmetic that models are made of, so that it can be done by other means than torch's own.

Every operation guarantees *row invariance*: the result for a token is the same bits whatever other
tokens are computed with it, in whichever order. Greedy output depends on it. Only kernels for GPUs
do not promise it: libraries choose their algorithms by the shapes of a step there.

What lies between two operations (the residual stream, a layer's queries) has the adapter's own
number format, `Kernels.activation_dtype`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch

from worker.kernels.recording import Capture
from worker.kernels.sampling import Draw, LogProbability, Unchosen
from worker.weights.quantized import QuantizedWeight


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one sequence, from position `first` on, computed in one step.

    `blocks` is the sequence's block table; it covers the span. Keys and values of all positions
    before `first` are in the cache. `lane` is the sequence's place in the batch, its own as long as
    it runs: adapters keep its table there, and take `blocks` for the same table, perhaps longer, as
    long as it is the same object.
    """

    first: int
    count: int
    blocks: Sequence[int]
    lane: int = 0


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How large a KV cache is, and who reads it."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_blocks: int
    block_size: int
    dtype: torch.dtype  # of keys and values: int8 comes with a scale a token and head
    lanes: int = 1

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """Root mean square norm (Zhang, Sennrich 2019): `weight` float32 [channels]."""

    weight: torch.Tensor
    epsilon: float


class Gate(Enum):
    """Joins a token's gates and up, each half as wide: activation(gates) * up (Shazeer 2020).

    GELU is the one approximated by tanh (Hendrycks, Gimpel 2016).
    """

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


Prologue = Norm | None


class Product(Protocol):
    """x W^T + b of a weight that the kernels have taken over, in whichever format and layout."""

    def __call__(
        self,
        x: torch.Tensor,  # [tokens, in]
        *,
        prologue: Prologue = None,
        gate: Gate | None = None,  # joins the halves of what comes out
        residual: torch.Tensor | None = None,  # [tokens, out], added to a product without a gate
    ) -> torch.Tensor:  # [tokens, out], or [tokens, out / 2] behind a gate
        ...

    def state(self) -> Mapping[str, torch.Tensor]:
        """The weight as `Kernels.restore` takes it back; empty where packing it costs nothing."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    """What is particular to one layer's attention.

    A head's query and key are normed, where norms are given, then rotated. Scores are products
    times `scale`, then softcap * tanh(score / softcap) where given. Where there is a window, a
    token sees itself and the `window - 1` positions before it.
    """

    index: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None


class AttentionStep(Protocol):
    """One step's tokens laid out over the cache; tokens are in the order of the spans."""

    def attend(
        self,
        layer: AttentionLayer,
        query_key_value: torch.Tensor,  # [tokens, (heads + 2 * kv_heads) * head_dim]
        rope: torch.Tensor,  # float32 [positions, rotary_dim]: cosines, then sines
    ) -> torch.Tensor:  # [tokens, heads * head_dim]
        """Rotates query and key, keeps key and value, attends to all positions up to each token.

        A head's first `rotary_dim` channels are rotated, their halves paired. What a sequence has
        in the cache never reaches another's result, not even as NaN.
        """
        ...


class Layers(Protocol):
    """A model between its embedding and its last norm: nothing but operations of these kernels."""

    def __call__(
        self,
        x: torch.Tensor,  # [tokens, hidden]
        step: AttentionStep,
        ropes: Sequence[torch.Tensor],
    ) -> torch.Tensor:  # [tokens, hidden]
        ...


class KVCache(Protocol):
    """Keys and values of every layer, in blocks."""

    def lay_out(self, spans: Sequence[Span]) -> AttentionStep: ...


class StaticPlaces(Protocol):
    """Where tokens of rows of sequences lie, in memory that stays where it is."""

    def fill(self, spans: Sequence[Span]) -> None:
        """The first rows with a sequence each, of as many tokens as a row has, or fewer."""
        ...

    def step(self) -> AttentionStep:
        """The step of all rows' tokens, over whatever the places hold when it is computed."""
        ...


class StaticKVCache(KVCache, Protocol):
    """One whose steps can be recorded and replayed."""

    def static_places(self, *, rows: int, columns: int, context_tokens: int) -> StaticPlaces:
        """For `rows` sequences, of `columns` tokens each in a step and `context_tokens` at most."""
        ...


class Kernels(Protocol):
    """One implementation, for one device."""

    @property
    def name(self) -> str:
        """For people, such as `torch` or `native avx512bf16`."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def activation_dtype(self) -> torch.dtype: ...

    @property
    def capture(self) -> Capture | None:
        """How steps of one shape are recorded; caches are StaticKVCaches then. None: not at all."""
        ...

    @property
    def layout(self) -> str | None:
        """Names the format of what `Product.state` gives; None where nothing is packed."""
        ...

    def product(
        self,
        parts: Sequence[torch.Tensor | QuantizedWeight],
        biases: Sequence[torch.Tensor | None],
    ) -> Product:
        """Takes over weights [out_i, in] that multiply the same tokens, one below the other.

        Biases are [out_i], one a part, or none at all.
        """
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> Product:
        """A product from its state, without a copy. Raises SourceInvalid when it is none."""
        ...

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor, scale: float) -> torch.Tensor:
        """Rows of the table [vocabulary, hidden], times `scale`: [tokens, hidden]."""
        ...

    def norm(
        self,
        x: torch.Tensor,  # [tokens, hidden]
        norm: Norm,
        *,
        residual: torch.Tensor | None = None,  # [tokens, hidden], added to the normed tokens
    ) -> torch.Tensor:  # [tokens, hidden]
        ...

    def compile(self, layers: Layers) -> Layers:
        """The same, perhaps faster, of layers that do the same operations whatever the step."""
        ...

    def free_bytes(self) -> int | None:
        """Device memory that is left; None where the cache lies in host memory."""
        ...

    def cache_bytes(self, shape: CacheShape) -> int:
        """Bytes of one block, all layers together.

        Raises Invalid for a format of keys and values that these kernels do not keep, and
        UnsupportedModel for heads that they do not compute.
        """
        ...

    def allocate_cache(self, shape: CacheShape) -> KVCache:
        """Reserves the cache; memory is taken as blocks are first written."""
        ...

    def choose(
        self,
        logits: torch.Tensor,  # [rows, vocabulary]
        draws: Sequence[Draw],  # one a row
        masks: torch.Tensor | None,  # int32 [masks, ceil(vocabulary / 32)], on the CPU
    ) -> list[int | Unchosen]:
        """A token a row, as `worker.kernels.sampling` says.

        A mask allows token i where bit i % 32 of word i // 32 is set. The logits are as they were
        when it returns.
        """
        ...

    def log_probabilities(
        self,
        logits: torch.Tensor,  # [rows, vocabulary]
        rows: Sequence[int],
        token_ids: Sequence[int],  # one of each of these rows
        count: int,  # of likeliest tokens
    ) -> list[LogProbability]:
        """Of the given tokens, and of the `count` likeliest in their rows."""
        ...
