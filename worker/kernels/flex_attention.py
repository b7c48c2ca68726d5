"""Paged attention by torch's FlexAttention, which is compiled for the device it runs on.

What is known of a step is made into arrays on the host (`flex_places`). From there on everything
depends on tensors alone, so that a step over arrays of one shape can be recorded and replayed.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch._dynamo import mark_static
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from worker.kernels.flex_places import (
    LONGEST_ROW,
    Integers,
    Rows,
    fill_rows,
    places,
    slots_of,
)
from worker.kernels.heads import normed, rotated
from worker.kernels.port import AttentionLayer, CacheShape, Span

_ENDLESS = 1 << 30  # a window that hides nothing

Attend = Callable[..., torch.Tensor]


class Compile(Protocol):
    """Makes a function fast on its device: for tensors of any shape, or anew for each shape."""

    def __call__(self, function: Attend, *, is_dynamic: bool) -> Attend: ...


def attend(
    query: torch.Tensor,  # [rows, heads, columns, head_dim]
    keys: torch.Tensor,  # [1, kv_heads, slots, head_dim]
    values: torch.Tensor,
    firsts: torch.Tensor,  # int32 [rows]: positions of the first queries
    num_blocks: torch.Tensor,  # int32 [rows]: how much there is of the tables
    tables: torch.Tensor,  # int32 [rows, blocks]
    numbers: torch.Tensor,  # int32 [rows, all blocks]: a block's place in the table, or -1
    scale: torch.Tensor,  # [], as what follows
    window: torch.Tensor,
    softcap: torch.Tensor | None,
) -> torch.Tensor:  # [rows, heads, columns, head_dim]
    """Each row's queries see what lies in the row's blocks, up to themselves.

    Numbers are tensors, since others would be compiled in.
    """
    block_size = keys.shape[2] // numbers.shape[1]

    def is_seen(
        row: torch.Tensor, head: torch.Tensor, column: torch.Tensor, slot: torch.Tensor
    ) -> torch.Tensor:
        number = numbers[row, slot // block_size]
        distance = firsts[row] + column - (number * block_size + slot % block_size)
        return (number >= 0) & (distance >= 0) & (distance < window)

    def adjusted(
        score: torch.Tensor,
        row: torch.Tensor,
        head: torch.Tensor,
        column: torch.Tensor,
        slot: torch.Tensor,
    ) -> torch.Tensor:
        score = score * scale
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    mask = BlockMask.from_kv_blocks(
        num_blocks[:, None, None],
        tables[:, None, None],
        BLOCK_SIZE=(LONGEST_ROW, block_size),
        mask_mod=is_seen,
        seq_lengths=(query.shape[2], keys.shape[2]),
        compute_q_blocks=False,  # those are for gradients
    )
    return flex_attention(
        query,
        keys,
        values,
        score_mod=adjusted,
        block_mask=mask,
        scale=1.0,
        enable_gqa=True,
        kernel_options={"BLOCK_N": block_size},  # keys that are multiplied at once
    )


class FlexKVCache:
    """Keys and values as [2 * kv_heads, slots, head_dim] a layer.

    After the last block lies one more, for scratch: whatever fills up a shape uses that. All
    numbers are finite, so that a hidden position contributes an exact zero whoever wrote it last.
    """

    def __init__(self, shape: CacheShape, device: torch.device, compile_for: Compile) -> None:
        self.shape = shape
        self.device = device
        heads = shape.num_kv_heads
        slots = (shape.num_blocks + 1) * shape.block_size
        self.layers = torch.zeros(
            (shape.num_layers, 2 * heads, slots, shape.head_dim), dtype=shape.dtype, device=device
        ).unbind()
        self.keys = [layer[:heads].unsqueeze(0) for layer in self.layers]
        self.values = [layer[heads:].unsqueeze(0) for layer in self.layers]
        for pool in (*self.keys, *self.values):
            mark_static(pool)
        self.attend_any = compile_for(attend, is_dynamic=True)
        # Only where the number of rows is fixed does FlexAttention divide a row's keys over a GPU.
        self.attend_static = compile_for(attend, is_dynamic=False)
        self._constants: dict[float, torch.Tensor] = {}

    @property
    def scratch_block(self) -> int:
        return self.shape.num_blocks

    def lay_out(self, spans: Sequence[Span]) -> "FlexAttentionStep":
        size = self.shape.block_size
        laid_out = places(spans, block_size=size, scratch_block=self.scratch_block)
        return FlexAttentionStep(
            self,
            self._on_device(laid_out.positions),
            self._on_device(laid_out.slots),
            [
                FlexCall(
                    self,
                    *map(self._on_device, (rows.firsts, rows.num_blocks, rows.tables)),
                    tokens=self._on_device(rows.tokens),
                )
                for rows in laid_out.calls
            ],
            order=self._on_device(laid_out.order),
        )

    def static_places(self, *, rows: int, columns: int, context_tokens: int) -> "StaticPlaces":
        """Room for steps of as many sequences, each of as many tokens or fewer."""
        blocks = min(-(-context_tokens // self.shape.block_size), self.shape.num_blocks)
        return StaticPlaces(self, rows=rows, columns=columns, blocks=blocks)

    def write(self, layer: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Keeps [tokens, 2 * kv_heads, head_dim] in the slots [tokens]."""
        self.layers[layer].index_copy_(1, slots, keys_values.nan_to_num().transpose(0, 1))

    def constant(self, value: float) -> torch.Tensor:
        """[], on the device"""
        if value not in self._constants:
            self._constants[value] = torch.tensor(value, device=self.device)
        return self._constants[value]

    def _on_device(self, array: Integers) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


class FlexCall:
    """Rows that attend in one call, on the device."""

    def __init__(
        self,
        cache: FlexKVCache,
        firsts: torch.Tensor,
        num_blocks: torch.Tensor,
        tables: torch.Tensor,
        *,
        tokens: torch.Tensor | None,
    ) -> None:
        """`tokens` [rows * columns] are gathered; without them rows are the step's, in order."""
        self._cache = cache
        self._tokens = tokens
        self._attend = cache.attend_static if tokens is None else cache.attend_any
        rows, blocks = tables.shape
        all_blocks = cache.shape.num_blocks + 1
        places = torch.arange(blocks, dtype=torch.int32, device=cache.device).expand(rows, -1)
        numbers = torch.full((rows, all_blocks), -1, dtype=torch.int32, device=cache.device)
        numbers.scatter_(1, tables.long(), places)
        numbers[:, cache.scratch_block] = -1
        mark_static(numbers, 1)
        self._places = (firsts, num_blocks, tables, numbers)

    def attend(self, layer: AttentionLayer, query: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, head_dim] to [rows * columns, heads * head_dim]"""
        cache, rows = self._cache, len(self._places[0])
        if self._tokens is not None:
            query = query.index_select(0, self._tokens)
        attended = self._attend(
            query.view(rows, -1, *query.shape[1:]).transpose(1, 2).contiguous(),
            cache.keys[layer.index],
            cache.values[layer.index],
            *self._places,
            cache.constant(layer.scale),
            cache.constant(layer.window or _ENDLESS),
            None if layer.softcap is None else cache.constant(layer.softcap),
        )
        return attended.transpose(1, 2).flatten(2).flatten(0, 1)


class FlexAttentionStep:
    """See AttentionStep."""

    def __init__(
        self,
        cache: FlexKVCache,
        positions: torch.Tensor,
        slots: torch.Tensor,
        calls: Sequence[FlexCall],
        *,
        order: torch.Tensor | None,
    ) -> None:
        self._cache = cache
        self._positions = positions
        self._slots = slots.long()
        self._calls = calls
        self._order = order

    def attend(
        self, layer: AttentionLayer, query_key_value: torch.Tensor, rope: torch.Tensor
    ) -> torch.Tensor:
        shape = self._cache.shape
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        by_head = query_key_value.view(-1, heads + 2 * kv_heads, shape.head_dim)
        query, key, value = torch.split(by_head, [heads, kv_heads, kv_heads], 1)
        query_key = torch.cat((normed(query, layer.query_norm), normed(key, layer.key_norm)), 1)
        query_key = rotated(query_key, rope.index_select(0, self._positions))
        keys_values = torch.cat((query_key[:, heads:], value), 1)
        self._cache.write(layer.index, self._slots, keys_values)
        attended = [call.attend(layer, query_key[:, :heads]) for call in self._calls]
        if self._order is None:
            return attended[0]
        return torch.cat(attended).index_select(0, self._order)


class StaticPlaces:
    """The places of a step's tokens, rows * columns of them, in memory that stays where it is."""

    def __init__(self, cache: FlexKVCache, *, rows: int, columns: int, blocks: int) -> None:
        self._cache = cache
        self._columns = columns
        sizes = [rows * columns, rows * columns, rows, rows, rows * blocks]
        self._host = np.zeros(sum(sizes), np.int32)
        self._device = torch.zeros(sum(sizes), dtype=torch.int32, device=cache.device)
        self._positions, self._slots, firsts, num_blocks, tables = np.split(
            self._host, np.cumsum(sizes[:-1])
        )
        self._rows = Rows(firsts, num_blocks, tables.reshape(rows, blocks))

    def fill(self, spans: Sequence[Span]) -> None:
        """With a sequence a row; what is left goes to scratch."""
        size, scratch = self._cache.shape.block_size, self._cache.scratch_block
        self._positions[:] = 0
        self._slots[:] = scratch * size
        for row, span in enumerate(spans):
            begin = row * self._columns
            self._positions[begin : begin + span.count] = range(span.first, span.first + span.count)
            self._slots[begin : begin + span.count] = slots_of(span, size)
        fill_rows(self._rows, spans, block_size=size, scratch_block=scratch)
        self._device.copy_(torch.from_numpy(self._host))

    def step(self) -> FlexAttentionStep:
        """Over whatever they are filled with when it is computed."""
        rows, blocks = self._rows.tables.shape
        tokens = rows * self._columns
        positions, slots, firsts, num_blocks, tables = torch.split(
            self._device, [tokens, tokens, rows, rows, rows * blocks]
        )
        call = FlexCall(self._cache, firsts, num_blocks, tables.view(rows, blocks), tokens=None)
        return FlexAttentionStep(self._cache, positions, slots, [call], order=None)
