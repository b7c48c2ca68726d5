"""What the engine asks of a language model."""

from collections.abc import Sequence
from typing import Protocol

import torch

from worker.kernels.port import Kernels, KVCache, Span


class CausalModel(Protocol):
    """Weights and arithmetic; what is specific to sequences lies in the cache."""

    @property
    def kernels(self) -> Kernels:
        """What it computes with."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        ...

    @property
    def hidden_size(self) -> int:
        """How many numbers a token's state has."""
        ...

    @property
    def context_tokens(self) -> int:
        """Positions that it can tell apart, as far as the settings allow."""
        ...

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token, all layers together."""
        ...

    def allocate_cache(self, *, num_blocks: int, block_size: int, lanes: int = 1) -> KVCache:
        """For as many sequences at once as there are lanes."""
        ...

    def states(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        """Computes the spans' tokens into the cache.

        `token_ids` are the tokens of all spans in order; `wanted` are the indices among them whose
        logits will be. Returns what `head` makes these of, as [wanted, hidden].
        """
        ...

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] of [rows, hidden], for any rows at a time."""
        ...

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """The last hidden states [rows, hidden], which the head's weights multiply."""
        ...

    def logits(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        """The head of the states, all at once."""
        ...

    def to_host(self) -> None:
        """Moves its weights from the device to host memory; nothing to do on a CPU."""
        ...

    def to_device(self) -> None:
        """Moves them back; nothing to do where they are."""
        ...
