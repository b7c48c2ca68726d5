"""Steps in which sequences decode, recorded once and replayed: a GPU is faster than Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from worker.kernels.port import AttentionStep, KVCache, Span, StaticKVCache
from worker.kernels.recording import Capture, Compute
from worker.models.decoder import Decoder
from worker.models.wrapped import WrappedDecoder

_MOST_ROWS = 256
_MOST_COLUMNS = 8  # a token and the guesses after it
_FREE_TOKENS = 64  # up to which more tokens take a GPU no longer


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of a recorded step: rows of sequences, as many tokens each."""

    rows: int
    columns: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns


def bucket_of(counts: Sequence[int]) -> Bucket | None:
    """The smallest one for sequences with as many tokens; None where recording does not pay.

    Sides are powers of two, so that few steps are recorded.
    """
    bucket = Bucket(_power_of_two(len(counts)), _power_of_two(max(counts)))
    if bucket.rows > _MOST_ROWS or bucket.columns > _MOST_COLUMNS:
        return None
    return bucket if bucket.num_tokens <= max(_FREE_TOKENS, 2 * sum(counts)) else None


class RecordedModel(WrappedDecoder):
    """See CausalModel: a decoder, of whose steps one of each bucket is recorded."""

    def __init__(self, decoder: Decoder, capture: Capture) -> None:
        """The decoder's kernels have StaticKVCaches."""
        super().__init__(decoder)
        self._capture = capture

    def allocate_cache(self, *, num_blocks: int, block_size: int, lanes: int = 1) -> KVCache:
        cache = super().allocate_cache(num_blocks=num_blocks, block_size=block_size, lanes=lanes)
        return _RecordedCache(cast(StaticKVCache, cache))

    @torch.inference_mode()
    def states(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        assert isinstance(cache, _RecordedCache)
        bucket = bucket_of([span.count for span in spans])
        if bucket is None:
            return self._decoder.states(token_ids, spans, wanted, cache.plain)
        if bucket not in cache.steps:
            cache.steps[bucket] = _RecordedStep(self._decoder, cache.plain, bucket, self._capture)
        return cache.steps[bucket].states(token_ids, spans, wanted)


class _RecordedCache:
    """See KVCache: one with the steps that were recorded over it, which end with it."""

    def __init__(self, plain: StaticKVCache) -> None:
        self.plain = plain
        self.steps: dict[Bucket, _RecordedStep] = {}

    def lay_out(self, spans: Sequence[Span]) -> AttentionStep:
        return self.plain.lay_out(spans)


class _RecordedStep:
    """One bucket's step; it is recorded when it is first computed."""

    def __init__(
        self, decoder: Decoder, cache: StaticKVCache, bucket: Bucket, capture: Capture
    ) -> None:
        self._columns = bucket.columns
        self._places = cache.static_places(
            rows=bucket.rows, columns=bucket.columns, context_tokens=decoder.context_tokens
        )
        self._token_ids = torch.zeros(
            bucket.num_tokens, dtype=torch.int64, device=decoder.kernels.device
        )
        ropes = decoder.ropes(decoder.context_tokens)
        self._compute: Compute = lambda: decoder.through_layers(
            self._token_ids, self._places.step(), ropes
        )
        self._capture = capture
        self._replay: Compute | None = None

    def states(
        self, token_ids: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]
    ) -> torch.Tensor:
        """See CausalModel."""
        indices = [
            row * self._columns + column
            for row, span in enumerate(spans)
            for column in range(span.count)
        ]
        padded = torch.zeros(len(self._token_ids), dtype=torch.int64)
        padded[indices] = torch.tensor(token_ids)
        self._token_ids.copy_(padded)
        self._places.fill(spans)
        if self._replay is None:
            self._replay = self._capture(self._compute)
        rows = torch.tensor([indices[index] for index in wanted], dtype=torch.int64)
        return self._replay().index_select(0, rows.to(self._token_ids.device))


def _power_of_two(number: int) -> int:
    """The first one that is not below."""
    return 1 << (number - 1).bit_length()
