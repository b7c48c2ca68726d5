"""The kernels in C++ (worker/kernels/native), for x86 CPUs.

Activations are float32 between operators. Weights lie packed, 32 outputs interleaved, as bfloat16
or as 8- or 4-bit codes; keys and values as bfloat16 or int8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from infra.errors import SourceInvalid
from worker.kernels import native_sampling
from worker.kernels.memory import zero_pages
from worker.kernels.native.library import NativeLibrary
from worker.kernels.native_program import Arguments, NativeLayers, Tape
from worker.kernels.port import (
    AttentionLayer,
    CacheShape,
    Gate,
    Layers,
    Norm,
    Product,
    Prologue,
    Span,
)
from worker.kernels.sampling import Draw, LogProbability, Unchosen
from worker.weights.quantized import QuantizedWeight

_NO_PROLOGUE, _NORM_PROLOGUE = 0, 1
_GATES = {None: 0, Gate.SILU: 1, Gate.GELU_TANH: 2}
_BFLOAT16, _INT8, _INT4 = 16, 8, 4
_HEAD_STEP, _MOST_HEAD_DIM = 8, 256  # as in attention.cpp
_RUN_TOKENS = 128


def attends_heads(head_dim: int) -> bool:
    """Whether there is attention for heads of so many channels."""
    return head_dim % _HEAD_STEP == 0 and head_dim <= _MOST_HEAD_DIM


class NativeKernels:
    """See Kernels."""

    activation_dtype = torch.float32
    capture = None

    def __init__(self, library: NativeLibrary) -> None:
        self.device = torch.device("cpu")
        self.name = f"native {library.instruction_set}"
        self.layout = library.layout
        self._tape = Tape()

    def product(
        self,
        parts: Sequence[torch.Tensor | QuantizedWeight],
        biases: Sequence[torch.Tensor | None],
    ) -> Product:
        bias = None
        if any(each is not None for each in biases):
            bias = torch.cat(
                [
                    torch.zeros(part.shape[0]) if each is None else each.float()
                    for part, each in zip(parts, biases, strict=True)
                ]
            )
        return NativeProduct(self._tape, **_packed(parts), bias=bias)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Product:
        try:
            kind, outputs = state["shape"].tolist()
            return NativeProduct(
                self._tape,
                state["packed"],
                kind,
                outputs,
                scale=state.get("scale"),
                bias=state.get("bias"),
            )
        except (KeyError, ValueError) as error:
            raise SourceInvalid("this is not the state of a packed weight") from error

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor, scale: float) -> torch.Tensor:
        rows = F.embedding(token_ids, table).float()
        return rows if scale == 1 else rows.mul_(scale)

    def norm(
        self, x: torch.Tensor, norm: Norm, *, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        arguments: Arguments = (norm.weight, norm.epsilon)
        normed: torch.Tensor = torch.ops.firstlight.rms_norm.default(x, *arguments, residual)
        if self._tape.recording is not None:
            self._tape.recording.rms_norm(x, arguments, residual, normed)
        return normed

    def compile(self, layers: Layers) -> Layers:
        return NativeLayers(layers, self._tape)

    def free_bytes(self) -> None:
        return None

    def cache_bytes(self, shape: CacheShape) -> int:
        return shape.num_layers * shape.num_kv_heads * _head_block_bytes(shape)

    def allocate_cache(self, shape: CacheShape) -> "NativeKVCache":
        return NativeKVCache(shape, self._tape)

    def choose(
        self, logits: torch.Tensor, draws: Sequence[Draw], masks: torch.Tensor | None
    ) -> list[int | Unchosen]:
        return native_sampling.choose(logits, draws, masks)

    def log_probabilities(
        self, logits: torch.Tensor, rows: Sequence[int], token_ids: Sequence[int], count: int
    ) -> list[LogProbability]:
        return native_sampling.log_probabilities(logits, rows, token_ids, count)


class NativeProduct:
    """See Product."""

    def __init__(
        self,
        tape: Tape,
        packed: torch.Tensor,
        kind: int,
        outputs: int,
        *,
        scale: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> None:
        """`packed` uint8 [outputs / 32, inputs / 32, bytes]; `scale`, `bias` float32 [outputs]."""
        self._tape = tape
        self._packed = packed
        self._kind = kind
        self._outputs = outputs
        self._scale = scale
        self._bias = bias

    def __call__(
        self,
        x: torch.Tensor,
        *,
        prologue: Prologue = None,
        gate: Gate | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        mode, weight, epsilon = _NO_PROLOGUE, None, 0.0
        if prologue is not None:
            mode, weight, epsilon = _NORM_PROLOGUE, prologue.weight, prologue.epsilon
        arguments: Arguments = (
            *(self._packed, self._kind, self._outputs, self._scale, self._bias),
            *(mode, weight, epsilon, _GATES[gate]),
        )
        product: torch.Tensor = torch.ops.firstlight.linear.default(x, *arguments, residual)
        if self._tape.recording is not None:
            self._tape.recording.linear(x, arguments, residual, product)
        return product

    def state(self) -> Mapping[str, torch.Tensor]:
        state = {"packed": self._packed, "shape": torch.tensor([self._kind, self._outputs])}
        if self._scale is not None:
            state["scale"] = self._scale
        if self._bias is not None:
            state["bias"] = self._bias
        return state


def _packed(parts: Sequence[torch.Tensor | QuantizedWeight]) -> dict[str, Any]:
    """Arguments of a NativeProduct; parts of several formats go in bfloat16, which all fit."""
    ops = torch.ops.firstlight
    outputs = sum(part.shape[0] for part in parts)
    quantised = [part for part in parts if isinstance(part, QuantizedWeight)]
    bits = {part.bits for part in quantised}
    if len(quantised) == len(parts) and len(bits) == 1:
        codes = torch.cat([part.codes for part in quantised])
        scale = torch.cat([part.scale for part in quantised])
        if bits == {8}:
            packed = ops.pack_int8.default(codes)
            return {"packed": packed, "kind": _INT8, "outputs": outputs, "scale": scale[:, 0]}
        offset = torch.cat([part.offset for part in quantised if part.offset is not None])
        packed = ops.pack_int4.default(codes, scale, offset)
        return {"packed": packed, "kind": _INT4, "outputs": outputs}
    plain = [
        (part.dequantise() if isinstance(part, QuantizedWeight) else part).to(torch.bfloat16)
        for part in parts
    ]
    weight = torch.cat(plain) if len(plain) > 1 else plain[0].contiguous()
    return {"packed": ops.pack_bf16.default(weight), "kind": _BFLOAT16, "outputs": outputs}


class NativeKVCache:
    """Blocks as [runs, layers, kv_heads, blocks of a run, bytes]: a run's layers lie together.

    So memory is taken as far as blocks are used, in whole huge pages, and what a head reads of a
    sequence is in long pieces. Each lane's block table is kept from step to step, and only what a
    table has grown by is written.
    """

    def __init__(self, shape: CacheShape, tape: Tape) -> None:
        self.shape = shape
        self._tape = tape
        run = _RUN_TOKENS // shape.block_size
        pool = (
            *(-(-shape.num_blocks // run), shape.num_layers, shape.num_kv_heads),
            *(run, _head_block_bytes(shape)),
        )
        self._pools = list(zero_pages(pool, torch.uint8, is_huge=True).unbind(1))
        table = zero_pages((shape.lanes, shape.num_blocks), torch.int32)
        self._tables = table
        self._table_rows = table.numpy()
        self._owners: list[Sequence[int] | None] = [None] * shape.lanes
        self._known = [0] * shape.lanes  # entries of the owner's table that are written
        self._starts = torch.zeros(shape.lanes + 1, dtype=torch.int32)
        self._ends = torch.zeros(shape.lanes, dtype=torch.int32)
        self._rows = torch.zeros(shape.lanes, dtype=torch.int32)

    def lay_out(self, spans: Sequence[Span]) -> "NativeAttentionStep":
        starts, ends, rows = self._starts.numpy(), self._ends.numpy(), self._rows.numpy()
        token = 0
        for index, span in enumerate(spans):
            self._keep_table(span)
            token += span.count
            starts[index + 1] = token
            ends[index] = span.first + span.count
            rows[index] = span.lane
        count = len(spans)
        return NativeAttentionStep(
            self.shape,
            self._tape,
            self._pools,
            self._tables,
            self._rows[:count],
            self._starts[: count + 1],
            self._ends[:count],
        )

    def _keep_table(self, span: Span) -> None:
        lane, blocks = span.lane, span.blocks
        if self._owners[lane] is not blocks or len(blocks) < self._known[lane]:
            self._owners[lane], self._known[lane] = blocks, 0
        known, count = self._known[lane], len(blocks)
        if known < count:
            self._table_rows[lane, known:count] = blocks[known:]
            self._known[lane] = count


class NativeAttentionStep:
    """See AttentionStep. Valid until the cache lays out the next step."""

    def __init__(
        self,
        shape: CacheShape,
        tape: Tape,
        pools: list[torch.Tensor],
        tables: torch.Tensor,
        rows: torch.Tensor,
        starts: torch.Tensor,
        ends: torch.Tensor,
    ) -> None:
        self._tape = tape
        self._pools = pools
        self._places = (tables, rows, starts, ends)
        self._heads = (
            *(shape.num_heads, shape.num_kv_heads, shape.head_dim),
            *(shape.block_size, shape.dtype is torch.int8),
        )

    def attend(
        self, layer: AttentionLayer, query_key_value: torch.Tensor, rope: torch.Tensor
    ) -> torch.Tensor:
        query_norm, key_norm = layer.query_norm, layer.key_norm
        arguments: Arguments = (
            None if query_norm is None else query_norm.weight,
            None if key_norm is None else key_norm.weight,
            0.0 if query_norm is None else query_norm.epsilon,
            *(layer.scale, layer.softcap or 0.0, layer.window or 0),
        )
        pool = self._pools[layer.index]
        attended: torch.Tensor = torch.ops.firstlight.attend.default(
            query_key_value, pool, *self._places, rope, *arguments, *self._heads
        )
        if self._tape.recording is not None:
            self._tape.recording.attend(query_key_value, layer.index, rope, arguments, attended)
        return attended

    def run(self, program: Any, x: torch.Tensor, ropes: Sequence[torch.Tensor]) -> torch.Tensor:
        """See NativeStep."""
        states: torch.Tensor = program.run(x, self._pools, *self._places, list(ropes), *self._heads)
        return states


def _head_block_bytes(shape: CacheShape) -> int:
    """Bytes of one head's keys and values of a block."""
    size: int = torch.ops.firstlight.kv_block_bytes.default(
        shape.block_size, shape.head_dim, shape.dtype is torch.int8
    )
    return size
