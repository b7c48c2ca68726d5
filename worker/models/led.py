"""A model that several processes compute: this one leads, and the others do as it does."""

from collections.abc import Sequence
from typing import Protocol

import torch

from infra.errors import PlatformError, ReplicaFailed
from worker.kernels.port import KVCache, Span
from worker.models.decoder import Decoder
from worker.models.orders import Allocate, Head, Order, OrderWriter, Rest, Step
from worker.models.wrapped import WrappedDecoder
from worker.parallel.group import Group


class Followers(Protocol):
    """The other ranks."""

    def tell(self, order: bytes) -> None:
        """Sends an order to each. Raises ReplicaFailed when one is gone or hears nothing."""
        ...

    def explain(self, error: PlatformError) -> PlatformError:
        """Who was lost, where that is known; else the error itself."""
        ...


class LedModel(WrappedDecoder):
    """See CausalModel: rank 0's share, with an order to the others before each computation."""

    def __init__(self, decoder: Decoder, group: Group, followers: Followers) -> None:
        super().__init__(decoder)
        self._group = group
        self._followers = followers
        self._writer = OrderWriter()

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all ranks where they share the machine's memory, of one where each has a GPU's."""
        own = super().kv_bytes_per_token
        if self.kernels.device.type != "cpu":
            return own
        heads = [len(share.kv_heads.kept) for share in self._decoder.shares]
        return own * sum(heads) // heads[0]

    def allocate_cache(self, *, num_blocks: int, block_size: int, lanes: int = 1) -> KVCache:
        self._tell(Allocate(num_blocks, block_size, lanes))
        return super().allocate_cache(num_blocks=num_blocks, block_size=block_size, lanes=lanes)

    def states(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        self._tell(Step(token_ids, spans, wanted))
        try:
            return super().states(token_ids, spans, wanted, cache)
        except ReplicaFailed as error:
            raise self._followers.explain(error) from error

    def head(self, states: torch.Tensor) -> torch.Tensor:
        self._tell(Head(states.shape[0]))
        try:
            with torch.inference_mode():
                self._group.spread(states)
            return super().head(states)
        except ReplicaFailed as error:
            raise self._followers.explain(error) from error

    def to_host(self) -> None:
        self._tell(Rest(is_asleep=True))
        super().to_host()

    def to_device(self) -> None:
        self._tell(Rest(is_asleep=False))
        super().to_device()

    def _tell(self, order: Order) -> None:
        self._followers.tell(self._writer.written(order))


@torch.inference_mode()
def follow(decoder: Decoder, group: Group, order: Order, cache: KVCache | None) -> KVCache | None:
    """Does its part of an order; the cache as it is then."""
    match order:
        case Allocate(num_blocks, block_size, lanes):
            return decoder.allocate_cache(num_blocks=num_blocks, block_size=block_size, lanes=lanes)
        case Step(token_ids, spans, wanted):
            assert cache is not None, "it is allocated first"
            decoder.states(token_ids, spans, wanted, cache)
        case Head(rows):
            states = torch.empty(
                (rows, decoder.hidden_size),
                dtype=decoder.kernels.activation_dtype,
                device=decoder.kernels.device,
            )
            group.spread(states)
            decoder.head(states)
        case Rest(is_asleep=True):
            decoder.to_host()
            return None
        case Rest():
            decoder.to_device()
    return cache
