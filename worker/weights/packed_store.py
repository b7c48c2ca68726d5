"""Packed weights kept on the node: the next cold start maps them instead of packing again."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from infra.errors import PlatformError
from worker.weights.loader import map_file
from worker.weights.tensor_file import write_tensors

MOST_BYTES = 64 << 30
_ABANDONED_S = 3600.0
_KEY = "packed-for"


class PackedStore:
    """One safetensors file for each key; those opened longest ago make room for new ones.

    A key says all that the tensors depend on: the source's digest, their number format, the
    kernels' layout. Any number of processes may open and write at once: a file appears whole, by
    a rename, and stays mapped where it is deleted.
    """

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def open(self, key: str) -> dict[str, torch.Tensor] | None:
        """What was written under `key`, mapped; None where there is nothing, or nothing whole.

        Sizes are checked and contents are not: reading them would cost what mapping saves.
        """
        path = self._path(key)
        try:
            tensors = map_file(path)
            found = bytes(tensors.pop(_KEY).tolist()).decode()
        except (PlatformError, OSError, KeyError, ValueError):
            return None
        if found != key:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return tensors

    def write(self, key: str, tensors: Mapping[str, torch.Tensor], *, now: float) -> bool:
        """Keeps the tensors under `key`; whether there was room. `now` is unix seconds.

        Takes a while, and the disk: for a thread of low priority. Raises OSError.
        """
        named = {**tensors, _KEY: torch.tensor(list(key.encode()), dtype=torch.uint8)}
        size = sum(tensor.nbytes for tensor in named.values())
        self._folder.mkdir(parents=True, exist_ok=True)
        if size > self._most_bytes or size > shutil.disk_usage(self._folder).free // 2:
            return False
        self._make_room(size, now)
        partial = self._folder / f".{secrets.token_hex(8)}.partial"
        try:
            write_tensors(partial, named)
            partial.replace(self._path(key))
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"

    def _make_room(self, size: int, now: float) -> None:
        """Deletes what was opened longest ago, and what a dead writer left behind."""
        for partial in self._folder.glob(".*.partial"):
            with contextlib.suppress(OSError):
                if partial.stat().st_mtime < now - _ABANDONED_S:
                    partial.unlink()
        kept = []
        for path in self._folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):  # another process may delete it meanwhile
                status = path.stat()
                kept.append((status.st_mtime, status.st_size, path))
        excess = sum(bytes_ for _, bytes_, _ in kept) + size - self._most_bytes
        for _, bytes_, path in sorted(kept):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= bytes_
