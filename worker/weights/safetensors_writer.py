"""Writes bfloat16 safetensors, in shards when they grow large, a few rows at a time."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedWriter
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
BYTES_PER_ELEMENT: Final = 2
HEADER_ALIGNMENT: Final = 64  # the data begins on a cache line, so that a mapping can be used as is


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to write: `chunks` yields consecutive rows as float32, none of them kept."""

    name: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[NDArray[np.float32]]]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * BYTES_PER_ELEMENT


def write_safetensors(
    folder: Path,
    tensors: Sequence[PlannedTensor],
    *,
    max_shard_bytes: int,
    on_bytes: Callable[[int], None],
) -> None:
    """Writes the tensors in the given order, with an index when one shard does not hold them.

    `on_bytes` hears how many bytes have been written since it was last called. Files and names
    follow https://huggingface.co/docs/safetensors and what transformers reads.
    """
    shards = list(_shards(tensors, max_shard_bytes))
    names = [_shard_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, on_bytes)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.size for tensor in tensors)},
            "weight_map": {
                tensor.name: name
                for name, shard in zip(names, shards, strict=True)
                for tensor in shard
            },
        }
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bit patterns of finite values rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    is_odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = bits + (np.uint32(0x7FFF) + is_odd)
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _shards(
    tensors: Iterable[PlannedTensor], max_shard_bytes: int
) -> Iterator[list[PlannedTensor]]:
    shard: list[PlannedTensor] = []
    shard_bytes = 0
    for tensor in tensors:
        if shard and shard_bytes + tensor.size > max_shard_bytes:
            yield shard
            shard, shard_bytes = [], 0
        shard.append(tensor)
        shard_bytes += tensor.size
    yield shard


def _shard_name(number: int, count: int) -> str:
    return SINGLE_NAME if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _write_shard(
    path: Path, tensors: Sequence[PlannedTensor], on_bytes: Callable[[int], None]
) -> None:
    with path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            _write_tensor(file, tensor, on_bytes)
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(
    file: BufferedWriter, tensor: PlannedTensor, on_bytes: Callable[[int], None]
) -> None:
    written = 0
    for chunk in tensor.chunks():
        raw = to_bfloat16(chunk).astype("<u2", copy=False).data.cast("B")
        file.write(raw)
        on_bytes(raw.nbytes)
        written += raw.nbytes
    assert written == tensor.size, f"{tensor.name}: {written} bytes, {tensor.size} planned"


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.size
        entries[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // HEADER_ALIGNMENT) * HEADER_ALIGNMENT - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)
