"""Bytes that are on this machine: the ports' adapters that need no network."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.errors import SourceInvalid
from snapshotter.fs.layer_file import LayerFile
from snapshotter.fs.ports import ServedFile


class MemoryBytes:
    """Bytes in memory: the fake. What is not `here` has to be waited for, as from an origin."""

    def __init__(self, data: bytes, *, here: bool = True) -> None:
        self.data = data
        self.here = here

    @property
    def size(self) -> int:
        return len(self.data)

    def cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length) if self.here else None

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class LocalBytes:
    """A file that is there as a whole, an uncompressed layer for one."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size

    @property
    def size(self) -> int:
        return self._size

    def cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


def open_local(name: str, spec: Mapping[str, Any]) -> ServedFile:
    """OpenFile for layers on this disk: `metadata` and `stream` of the spec are paths.

    Raises SourceInvalid.
    """
    try:
        return LayerFile(
            name, Path(spec["metadata"]).read_bytes(), LocalBytes(Path(spec["stream"]))
        )
    except (OSError, KeyError, TypeError) as error:
        raise SourceInvalid(f"the layer {name} cannot be opened: {error}") from error
