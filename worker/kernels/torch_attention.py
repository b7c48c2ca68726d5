"""Paged attention in plain torch.

Flash attention is row-invariant if its inner products have few shapes: queries in multiples of 8,
keys in multiples of 512. (On some CPUs a last tile of at most 256 keys does as well, on others it
does not.) Without AVX512 no shape was found that would do: there every token attends in a call of
its own, the same call in whichever step. Layers with a soft-cap, which flash attention does not
know, are computed plainly and promise nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from worker.kernels.heads import normed, rotated
from worker.kernels.memory import zero_pages
from worker.kernels.port import AttentionLayer, CacheShape, Span

_KEY_TILE = 512  # keys that flash attention multiplies at once
_QUERY_TILE = 8


class TorchKVCache:
    """Keys and values as [2 * kv_heads, slots, head_dim] a layer: consecutive blocks are a slice.

    The memory begins as zeros and only finite numbers are written, so that a masked position
    contributes an exact zero whoever wrote it last. Past the last slot there is room for one more
    tile, which padded slices may reach into.

    Keys and values are rounded as `shape.dtype` says and kept in `dtype`, the one that attention
    computes in: of other formats this has the arithmetic and saves no memory.
    """

    def __init__(self, shape: CacheShape, *, dtype: torch.dtype, most_tokens: int) -> None:
        """`most_tokens` of one sequence may attend in one call."""
        self.shape = shape
        self.dtype = dtype
        slots = shape.num_slots + _KEY_TILE
        heads = shape.num_kv_heads
        self.layers = zero_pages(
            (shape.num_layers, 2 * heads, slots, shape.head_dim), dtype
        ).unbind()
        self._keys = [layer[:heads].unsqueeze(0) for layer in self.layers]
        self._values = [layer[heads:].unsqueeze(0) for layer in self.layers]
        self.filler = torch.zeros((heads, _QUERY_TILE, shape.head_dim), dtype=dtype)
        # [num_slots + tile]: n keys padded to N are masked by the N entries from num_slots - n on.
        self.ramp = torch.zeros(slots, dtype=dtype)
        self.ramp[shape.num_slots :] = -torch.inf
        self.most_tokens = most_tokens

    def lay_out(self, spans: Sequence[Span]) -> "TorchAttentionStep":
        return TorchAttentionStep(self, spans)

    def write(self, layer: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Keeps [tokens, 2 * kv_heads, head_dim] in the slots [tokens]."""
        kept = _rounded(keys_values.nan_to_num_(), self.shape.dtype)
        self.layers[layer].index_copy_(1, slots, kept.transpose(0, 1))

    def read(self, layer: int, tile: "_Tile") -> tuple[torch.Tensor, torch.Tensor]:
        """A tile's keys and values, each [1, kv_heads, padded keys, head_dim]."""
        keys, values = self._keys[layer], self._values[layer]
        if tile.blocks is not None:
            return self._gather(keys, tile.blocks), self._gather(values, tile.blocks)
        count = tile.mask.shape[1]
        return keys.narrow(2, tile.start, count), values.narrow(2, tile.start, count)

    def _gather(self, pool: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """The blocks' slots in order, copied: [1, kv_heads, slots, head_dim]."""
        shape = self.shape
        by_block = pool[:, :, : shape.num_slots].view(
            1, shape.num_kv_heads, shape.num_blocks, shape.block_size * shape.head_dim
        )
        return by_block.index_select(2, blocks).view(1, shape.num_kv_heads, -1, shape.head_dim)


def _rounded(keys_values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[tokens, heads, head_dim] as `dtype` keeps them: int8 with a scale a token and head."""
    if dtype is not torch.int8:
        return keys_values.to(dtype).to(keys_values.dtype)
    x = keys_values.float()
    scale = x.abs().amax(-1, keepdim=True).div_(127).clamp_(min=1e-30)
    return (x / scale).round_().mul_(scale).to(keys_values.dtype)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Queries of one sequence that attend in one call.

    Their keys are one slice from slot `start` on, or the slots of `blocks`. Rows of queries are
    ordered by token, then by head of the group.
    """

    begin: int  # first and last + 1 of the step's tokens
    end: int
    start: int
    blocks: torch.Tensor | None
    mask: torch.Tensor  # [padded rows or 1, padded keys]


class TorchAttentionStep:
    """See AttentionStep."""

    def __init__(self, cache: TorchKVCache, spans: Sequence[Span]) -> None:
        size = cache.shape.block_size
        places = [
            (position, span.blocks[position // size] * size + position % size)
            for span in spans
            for position in range(span.first, span.first + span.count)
        ]
        placed = torch.tensor(places)  # [tokens, 2]
        self._positions, self._slots = placed.unbind(1)
        self._cache = cache
        self._spans = spans
        self._tiles: dict[int | None, list[_Tile]] = {}  # by window

    def attend(
        self, layer: AttentionLayer, query_key_value: torch.Tensor, rope: torch.Tensor
    ) -> torch.Tensor:
        shape = self._cache.shape
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        tokens = query_key_value.shape[0]
        by_head = query_key_value.view(tokens, heads + 2 * kv_heads, shape.head_dim)
        query, key, value = torch.split(by_head, [heads, kv_heads, kv_heads], 1)
        query_key = torch.cat((normed(query, layer.query_norm), normed(key, layer.key_norm)), 1)
        query_key = rotated(query_key, rope.index_select(0, self._positions))
        keys_values = torch.cat((query_key[:, heads:], value), 1)
        self._cache.write(layer.index, self._slots, keys_values)
        queries = query_key[:, :heads].view(tokens, kv_heads, heads // kv_heads, shape.head_dim)
        attended = [
            self._attend_tile(layer, queries, tile) for tile in self._tiles_within(layer.window)
        ]
        return torch.cat(attended) if len(attended) > 1 else attended[0]

    def _tiles_within(self, window: int | None) -> list[_Tile]:
        if window not in self._tiles:
            self._tiles[window] = _tiles(self._cache, self._spans, window)
        return self._tiles[window]

    def _attend_tile(
        self, layer: AttentionLayer, queries: torch.Tensor, tile: _Tile
    ) -> torch.Tensor:
        """[tile's tokens, heads * head_dim] of the step's [tokens, kv_heads, group, head_dim]"""
        keys, values = self._cache.read(layer.index, tile)
        rows = queries[tile.begin : tile.end].transpose(0, 1).flatten(1, 2)
        kv_heads, count, head_dim = rows.shape
        if missing := _padded_rows(count) - count:
            rows = torch.cat((rows, self._cache.filler[:, :missing]), 1)
        if layer.softcap is None:
            attended = F.scaled_dot_product_attention(
                rows.unsqueeze(0), keys, values, attn_mask=tile.mask, scale=layer.scale
            )
        else:
            attended = _softcapped(rows.unsqueeze(0), keys, values, tile.mask, layer)
        by_token = attended[0, :, :count].view(kv_heads, tile.end - tile.begin, -1, head_dim)
        return by_token.transpose(0, 1).flatten(1)


def _softcapped(
    rows: torch.Tensor,  # [1, kv_heads, rows, head_dim]
    keys: torch.Tensor,  # [1, kv_heads, keys, head_dim]
    values: torch.Tensor,
    mask: torch.Tensor,  # [rows or 1, keys]
    layer: AttentionLayer,
) -> torch.Tensor:  # [1, kv_heads, rows, head_dim]
    assert layer.softcap is not None
    scores = rows.float() @ keys.float().transpose(-1, -2) * layer.scale
    scores = torch.tanh(scores / layer.softcap) * layer.softcap + mask
    return (scores.softmax(-1) @ values.float()).to(rows.dtype)


def _tiles(cache: TorchKVCache, spans: Sequence[Span], window: int | None) -> list[_Tile]:
    tiles = []
    begin = 0
    for span in spans:
        for offset in range(0, span.count, cache.most_tokens):
            count = min(cache.most_tokens, span.count - offset)
            tiles.append(_tile(cache, span, begin, span.first + offset, count, window))
            begin += count
    return tiles


def _tile(
    cache: TorchKVCache, span: Span, begin: int, first: int, count: int, window: int | None
) -> _Tile:
    shape = cache.shape
    num_keys = first + count
    padded_keys = _padded_keys(num_keys)
    blocks = list(span.blocks[: -(-num_keys // shape.block_size)])
    is_slice = blocks == list(range(blocks[0], blocks[0] + len(blocks)))
    reaches_all = window is None or num_keys <= window
    if count == 1 and reaches_all:
        ramp_start = shape.num_slots - num_keys
        mask = cache.ramp[ramp_start : ramp_start + padded_keys].unsqueeze(0)
    else:
        mask = _causal_mask(cache, first, count, padded_keys, None if reaches_all else window)
    return _Tile(
        begin=begin,
        end=begin + count,
        start=blocks[0] * shape.block_size,
        blocks=None if is_slice else _padded_table(cache, blocks, padded_keys),
        mask=mask,
    )


def _causal_mask(
    cache: TorchKVCache, first: int, count: int, num_keys: int, window: int | None
) -> torch.Tensor:
    """[padded rows, num_keys]: each token sees positions up to its own; added rows see some."""
    shape = cache.shape
    group = shape.num_heads // shape.num_kv_heads
    rows = _padded_rows(count * group)
    tokens = -(-rows // group)
    mask = torch.full((tokens, num_keys), -torch.inf, dtype=cache.dtype)
    mask.triu_(first + 1)
    if window is not None:
        mask += torch.full_like(mask, -torch.inf).tril_(first - window)
    return mask.repeat_interleave(group, 0)[:rows]


def _padded_table(cache: TorchKVCache, blocks: list[int], num_keys: int) -> torch.Tensor:
    """Repeats the last block up to `num_keys` slots."""
    missing = num_keys // cache.shape.block_size - len(blocks)
    return torch.tensor(blocks + blocks[-1:] * missing)


def _padded_keys(count: int) -> int:
    return -(-count // _KEY_TILE) * _KEY_TILE


def _padded_rows(count: int) -> int:
    return -(-count // _QUERY_TILE) * _QUERY_TILE
