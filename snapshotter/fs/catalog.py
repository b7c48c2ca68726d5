"""Which files the data process serves, on disk: what a restart begins with."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from infra.errors import SourceInvalid
from infra.json_file import read_json_object
from snapshotter.fs.served_files import checked_name

log = structlog.get_logger()

MOST_SPEC_BYTES = 1 << 20
_SUFFIX = ".json"


class Catalog:
    """One JSON file for each served file: its name, and what opening it needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, spec: Mapping[str, Any]) -> None:
        """Remembers it, before anything is mounted on it; it outlives a crash. Raises OSError."""
        path = self._path(name)
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(spec, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def all(self) -> dict[str, dict[str, Any]]:
        """Every name and spec; what cannot be read is logged and left out."""
        found = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                found[path.name.removesuffix(_SUFFIX)] = read_json_object(
                    path, most_bytes=MOST_SPEC_BYTES
                )
            except SourceInvalid as error:
                log.error("catalog.unreadable", file=path.name, error=error.detail)
        return found

    def _path(self, name: str) -> Path:
        return self._folder / f"{checked_name(name)}{_SUFFIX}"
