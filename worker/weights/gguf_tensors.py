"""Tensors of a GGUF as those of a folder: found, checked, unpacked and put into another order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.gguf_file import GgufFile, GgufTensor
from worker.weights.safetensors_writer import PlannedTensor

CHUNK_ELEMENTS: Final = 8 << 20  # 32 MB as float32: what a conversion holds at a time


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one tensor comes from and what it becomes."""

    source: str
    target: str
    shape: tuple[int, ...]
    interleaved_heads: int | None = None  # heads whose rotary pairs lie side by side: undone
    surplus: float = 0.0  # taken away from every number


def planned(gguf: GgufFile, placement: Placement) -> PlannedTensor:
    """Raises SourceInvalid when the tensor is missing or has another shape."""
    tensor = gguf.tensors.get(placement.source)
    if tensor is None:
        raise SourceInvalid(f"{gguf.path.name}: tensor {placement.source} is missing")
    if tensor.shape != placement.shape:
        raise SourceInvalid(
            f"{gguf.path.name}: tensor {tensor.name} has shape {list(tensor.shape)}, "
            f"expected {list(placement.shape)}"
        )
    order = _row_order(tensor.rows, placement.interleaved_heads)
    return PlannedTensor(
        name=placement.target,
        shape=placement.shape,
        chunks=lambda: _chunks(gguf, tensor, order, placement.surplus),
    )


def vector(gguf: GgufFile, tensor: GgufTensor, size: int) -> NDArray[np.float32]:
    """A short tensor as numbers; raises SourceInvalid when it is not so long."""
    if tensor.shape != (size,):
        raise SourceInvalid(f"{gguf.path.name}: {tensor.name} is misshapen")
    return _decoded(gguf, tensor, gguf.packed_rows(tensor)).ravel()


def _row_order(rows: int, heads: int | None) -> NDArray[np.int64]:
    """Which stored row becomes row i.

    A llama's GGUF keeps the two halves of a rotary pair side by side (0, d/2, 1, d/2 + 1 ...) where
    Hugging Face keeps them half a head apart.
    """
    order = np.arange(rows)
    if heads is None:
        return order
    return order.reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _chunks(
    gguf: GgufFile, tensor: GgufTensor, order: NDArray[np.int64], surplus: float
) -> Iterator[NDArray[np.float32]]:
    packed = gguf.packed_rows(tensor)
    step = max(1, CHUNK_ELEMENTS // tensor.shape[-1])
    for start in range(0, len(order), step):
        values = _decoded(gguf, tensor, packed[order[start : start + step]])
        if not np.isfinite(values).all():
            raise SourceInvalid(f"{gguf.path.name}: tensor {tensor.name} is not finite")
        yield values - np.float32(surplus) if surplus else values


def _decoded(gguf: GgufFile, tensor: GgufTensor, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    try:
        return dequantize(packed, tensor.encoding)
    except NotImplementedError:
        raise UnsupportedModel(
            f"{gguf.path.name}: tensor {tensor.name} is {tensor.encoding.name}, "
            "which cannot be unpacked"
        ) from None
