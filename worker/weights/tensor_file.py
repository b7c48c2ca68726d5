"""Writes tensors of any format to one safetensors file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from worker.weights.loader import FLOATS, INTEGERS

_ALIGNMENT = 64  # of every tensor whose size is a multiple of it: a cache line, a vector
_PIECE_BYTES = 4 << 20
_FORMATS = {dtype: name for name, dtype in (FLOATS | INTEGERS).items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes and syncs a new file. Raises OSError."""
    # Whatever would break the alignment of its successors goes last.
    ordered = sorted(tensors.items(), key=lambda named: named[1].nbytes % _ALIGNMENT != 0)
    with path.open("wb") as file:
        file.write(_header(dict(ordered)))
        for _, tensor in ordered:
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
            for start in range(0, len(raw), _PIECE_BYTES):
                file.write(raw[start : start + _PIECE_BYTES])
        file.flush()
        os.fsync(file.fileno())


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
