"""What models that compute with a decoder, in a way of their own, have from it unchanged."""

from collections.abc import Sequence

import torch

from worker.kernels.port import Kernels, KVCache, Span
from worker.models.decoder import Decoder


class WrappedDecoder:
    """See CausalModel; `allocate_cache`, `states` and `head` are its heirs' to change."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def kernels(self) -> Kernels:
        return self._decoder.kernels

    @property
    def vocabulary(self) -> int:
        return self._decoder.vocabulary

    @property
    def hidden_size(self) -> int:
        return self._decoder.hidden_size

    @property
    def context_tokens(self) -> int:
        return self._decoder.context_tokens

    @property
    def kv_bytes_per_token(self) -> int:
        return self._decoder.kv_bytes_per_token

    def allocate_cache(self, *, num_blocks: int, block_size: int, lanes: int = 1) -> KVCache:
        return self._decoder.allocate_cache(
            num_blocks=num_blocks, block_size=block_size, lanes=lanes
        )

    def states(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        return self._decoder.states(token_ids, spans, wanted, cache)

    def head(self, states: torch.Tensor) -> torch.Tensor:
        return self._decoder.head(states)

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        return self._decoder.normed(states)

    def logits(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        return self.head(self.states(token_ids, spans, wanted, cache))

    def to_host(self) -> None:
        self._decoder.to_host()

    def to_device(self) -> None:
        self._decoder.to_device()
