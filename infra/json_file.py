"""Reads a JSON object from a file that nobody vouches for."""

import json
import stat
from pathlib import Path
from typing import Any

from infra.errors import SourceInvalid


def read_json_object(path: Path, *, most_bytes: int) -> dict[str, Any]:
    """The object in `path`.

    Raises SourceInvalid when it is missing, not a regular file, larger than `most_bytes`, not
    UTF-8, not JSON, nested too deep, or something else than an object.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SourceInvalid(f"{path.name} is not a regular file")
        if status.st_size > most_bytes:
            raise SourceInvalid(f"{path.name} has {status.st_size} bytes", limit_bytes=most_bytes)
        return parse_json_object(path.read_bytes(), name=path.name)
    except FileNotFoundError as error:
        raise SourceInvalid(f"{path.name} is missing") from error
    except OSError as error:
        raise SourceInvalid(f"{path.name} cannot be read: {error.strerror}") from error


def parse_json_object(text: bytes, *, name: str) -> dict[str, Any]:
    """The object in `text`; raises SourceInvalid that speaks of `name`."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise SourceInvalid(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceInvalid(f"{name} holds no JSON object")
    return value


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return value
