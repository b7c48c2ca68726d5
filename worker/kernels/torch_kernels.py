"""The kernels in plain torch, row-invariant by measurement and by test.

What was found (torch 2.13, x86 from AVX2 to AVX512-FP16), and how it is heeded:

- oneDNN's inner product gives a row the same bits among however many rows, from 2 rows on: of a
  single row threads or vectors may share the sum, so it goes twice. `F.linear` leads to oneDNN's
  matrix product, to MKL or to a plain loop, and of these only the loop (bfloat16 without AVX512)
  will do.
- Flash attention does if its inner products have few shapes: queries in multiples of 8, and a last
  tile of keys of at most 256 or exactly 512. Without AVX512 no shape was found that would do:
  there every token attends in a call of its own, the same call in whichever step.
- Exponentials at the end of an array are computed one by one, by another formula than vectors of
  them. In bfloat16 both round to the same number, for every input; float32 goes in whole vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from worker.kernels.memory import zero_pages
from worker.kernels.port import Angles, CacheShape, Span

_KEY_TILE = 512  # keys that flash attention multiplies at once
_SMALL_KEY_TILE = 64
_MOST_SMALL_KEYS = 256
_QUERY_TILE = 8
_MOST_TOKENS = 256  # of one sequence in one call: bounds the mask's memory
_VECTOR = 16  # float32 numbers
_SERIAL = 32_767  # numbers up to which torch does not divide an elementwise function


class TorchKernels:
    """See Kernels. Written for the CPU; other devices run the same operations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if x.device.type != "cpu" or not (self._has_avx512 or x.dtype is torch.float32):
            return F.linear(x, weight, bias)
        rows = x.shape[0]
        if rows == 1:
            x = torch.cat((x, x))
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, weight, bias, "none", [], ""
        )
        return product[:rows]

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, epsilon)

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if gate.dtype is torch.float32:
            return _float32_silu(gate).mul_(up)
        return F.silu(gate).mul_(up)

    def allocate_cache(self, shape: CacheShape) -> "TorchKVCache":
        has_exact_tiles = self._has_avx512 or self.device.type != "cpu"
        return TorchKVCache(shape, self.device, most_tokens=_MOST_TOKENS if has_exact_tiles else 1)


def _float32_silu(x: torch.Tensor) -> torch.Tensor:
    inner = x.shape[1]
    rows = 1 if inner % _VECTOR else max(1, _SERIAL // inner)
    return torch.cat([F.silu(part) for part in torch.split(x, rows)])


class TorchKVCache:
    """Keys and values as [2 * kv_heads, slots, head_dim] a layer: consecutive blocks are a slice.

    The memory begins as zeros and only finite numbers are written, so that a masked position
    contributes an exact zero whoever wrote it last. Past the last slot there is room for one more
    tile, which padded slices may reach into.
    """

    def __init__(self, shape: CacheShape, device: torch.device, *, most_tokens: int) -> None:
        """`most_tokens` of one sequence may attend in one call."""
        self.shape = shape
        self.device = device
        slots = shape.num_slots + _KEY_TILE
        heads = shape.num_kv_heads
        self.layers = zero_pages(
            (shape.num_layers, 2 * heads, slots, shape.head_dim), shape.dtype, device
        ).unbind()
        self._keys = [layer[:heads].unsqueeze(0) for layer in self.layers]
        self._values = [layer[heads:].unsqueeze(0) for layer in self.layers]
        self.filler = torch.zeros(
            (heads, _QUERY_TILE, shape.head_dim), dtype=shape.dtype, device=device
        )
        # [num_slots + tile]: n keys padded to N are masked by the N entries from num_slots - n on.
        self.ramp = torch.zeros(slots, dtype=shape.dtype, device=device)
        self.ramp[shape.num_slots :] = -torch.inf
        self.most_tokens = most_tokens

    def lay_out(self, spans: Sequence[Span]) -> "TorchAttentionStep":
        return TorchAttentionStep(self, spans)

    def write(self, layer: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Keeps [tokens, 2 * kv_heads, head_dim] in the slots [tokens]."""
        self.layers[layer].index_copy_(1, slots, keys_values.nan_to_num_().transpose(0, 1))

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
        placed = torch.tensor(places, device=cache.device)  # [tokens, 2]
        self.positions, self._slots = placed.unbind(1)
        self._cache = cache
        self._tiles = _tiles(cache, spans)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        angles: Angles,
    ) -> torch.Tensor:
        shape = self._cache.shape
        heads, kv_heads, tokens = shape.num_heads, shape.num_kv_heads, query.shape[0]
        query_key = torch.cat((query, key), 1).view(tokens, heads + kv_heads, shape.head_dim)
        query_key = _rotate(query_key, angles)
        keys_values = torch.cat(
            (query_key[:, heads:], value.view(tokens, kv_heads, shape.head_dim)), 1
        )
        self._cache.write(layer, self._slots, keys_values)
        queries = query_key[:, :heads].view(tokens, kv_heads, heads // kv_heads, shape.head_dim)
        attended = [self._attend_tile(layer, queries, tile) for tile in self._tiles]
        return torch.cat(attended) if len(attended) > 1 else attended[0]

    def _attend_tile(self, layer: int, queries: torch.Tensor, tile: _Tile) -> torch.Tensor:
        """[tile's tokens, heads * head_dim] of the step's [tokens, kv_heads, group, head_dim]"""
        keys, values = self._cache.read(layer, tile)
        rows = queries[tile.begin : tile.end].transpose(0, 1).flatten(1, 2)
        kv_heads, count, head_dim = rows.shape
        if missing := _padded_rows(count) - count:
            rows = torch.cat((rows, self._cache.filler[:, :missing]), 1)
        attended = F.scaled_dot_product_attention(
            rows.unsqueeze(0), keys, values, attn_mask=tile.mask
        )
        by_token = attended[0, :, :count].view(kv_heads, tile.end - tile.begin, -1, head_dim)
        return by_token.transpose(0, 1).flatten(1)


def _rotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Rotary embedding of [tokens, heads, head_dim], halves paired, in float32."""
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    return (x * angles.cos).add_(swapped * angles.sin).to(x.dtype)


def _tiles(cache: TorchKVCache, spans: Sequence[Span]) -> list[_Tile]:
    tiles = []
    begin = 0
    for span in spans:
        for offset in range(0, span.count, cache.most_tokens):
            count = min(cache.most_tokens, span.count - offset)
            tiles.append(_tile(cache, span, begin, span.first + offset, count))
            begin += count
    return tiles


def _tile(cache: TorchKVCache, span: Span, begin: int, first: int, count: int) -> _Tile:
    shape = cache.shape
    num_keys = first + count
    padded_keys = _padded_keys(num_keys)
    blocks = list(span.blocks[: -(-num_keys // shape.block_size)])
    is_slice = blocks == list(range(blocks[0], blocks[0] + len(blocks)))
    if count == 1:
        ramp_start = shape.num_slots - num_keys
        mask = cache.ramp[ramp_start : ramp_start + padded_keys].unsqueeze(0)
    else:
        mask = _causal_mask(cache, first, count, padded_keys)
    return _Tile(
        begin=begin,
        end=begin + count,
        start=blocks[0] * shape.block_size,
        blocks=None if is_slice else _padded_table(cache, blocks, padded_keys),
        mask=mask,
    )


def _causal_mask(cache: TorchKVCache, first: int, count: int, num_keys: int) -> torch.Tensor:
    """[padded rows, num_keys]: each token sees positions up to its own; added rows see some."""
    shape = cache.shape
    group = shape.num_heads // shape.num_kv_heads
    rows = _padded_rows(count * group)
    tokens = -(-rows // group)
    mask = torch.full((tokens, num_keys), -torch.inf, dtype=shape.dtype, device=cache.device)
    return mask.triu_(first + 1).repeat_interleave(group, 0)[:rows]


def _padded_table(cache: TorchKVCache, blocks: list[int], num_keys: int) -> torch.Tensor:
    """Repeats the last block up to `num_keys` slots."""
    missing = num_keys // cache.shape.block_size - len(blocks)
    return torch.tensor(blocks + blocks[-1:] * missing, device=cache.device)


def _padded_keys(count: int) -> int:
    rest = count % _KEY_TILE
    if rest > _MOST_SMALL_KEYS:
        return count - rest + _KEY_TILE
    return count - rest + -(-rest // _SMALL_KEY_TILE) * _SMALL_KEY_TILE


def _padded_rows(count: int) -> int:
    return -(-count // _QUERY_TILE) * _QUERY_TILE
