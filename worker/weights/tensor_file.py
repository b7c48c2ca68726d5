"""Writes tensors of any format to one safetensors file."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch

from infra.paging import HUGE_PAGE_BYTES
from worker.weights.loader import FLOATS, INTEGERS

_ALIGNMENT = 64  # of every tensor whose size is a multiple of it: a cache line, a vector
_PIECE_BYTES = 2 * HUGE_PAGE_BYTES
_FORMATS = {dtype: name for name, dtype in (FLOATS | INTEGERS).items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes and syncs a new file. Raises OSError.

    Linux keeps a file in huge pages as far as it was written by the whole page: who maps it while
    it is in memory computes with it sooner (int8 weights: 8 % of a decode step).
    """
    # Whatever would break the alignment of its successors goes last.
    ordered = sorted(tensors.items(), key=lambda named: named[1].nbytes % _ALIGNMENT != 0)
    header = memoryview(_header(dict(ordered)))
    with path.open("wb") as file:
        for piece in _pieces(chain([header], (_raw(tensor) for _, tensor in ordered))):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _raw(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _pieces(parts: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes in pieces of one size, each to be used before the next is made."""
    piece = memoryview(bytearray(_PIECE_BYTES))
    filled = 0
    for part in parts:
        for start in range(-filled, len(part), _PIECE_BYTES):
            taken = part[max(start, 0) : start + _PIECE_BYTES]
            piece[filled : filled + len(taken)] = taken
            filled += len(taken)
            if filled == _PIECE_BYTES:
                yield piece
                filled = 0
    yield piece[:filled]


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        entries[name] = {
            "dtype": _FORMATS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)
