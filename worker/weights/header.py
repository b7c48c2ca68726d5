"""The header of a safetensors file, read with suspicion (https://github.com/huggingface/safetensors)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import SourceInvalid, UnsupportedModel
from infra.json_file import parse_json_object

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

MOST_HEADER_BYTES = 32 << 20
MOST_DIMENSIONS = 8
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; `start` counts bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """The file's tensors in the order of their bytes.

    Raises SourceInvalid when the file is missing, truncated or inconsistent: every byte after the
    header belongs to exactly one tensor, and every tensor has the bytes that its shape needs.
    """
    try:
        if not path.is_file():
            raise SourceInvalid(f"{path.name} is missing or not a regular file")
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if file_bytes < _LENGTH_BYTES or length > file_bytes - _LENGTH_BYTES:
                raise SourceInvalid(f"{path.name} is shorter than its header says")
            if length > MOST_HEADER_BYTES:
                raise SourceInvalid(f"{path.name} has a header of {length} bytes")
            text = file.read(length)
    except OSError as error:
        raise SourceInvalid(f"{path.name} cannot be read: {error.strerror}") from error
    return parse_header(text, data_bytes=file_bytes - _LENGTH_BYTES - length, name=path.name)


def parse_header(text: bytes, *, data_bytes: int, name: str) -> tuple[TensorEntry, ...]:
    """The tensors that a header's JSON text describes, when `data_bytes` follow it."""
    fields = parse_json_object(text, name=f"the header of {name}")
    fields.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + len(text)
    entries = sorted(
        (_entry(key, value, data_start, name) for key, value in fields.items()),
        key=lambda entry: (entry.start, entry.size),
    )
    position = data_start
    for entry in entries:
        if entry.start != position:
            raise SourceInvalid(f"{name}: the bytes of {entry.name!r} overlap or leave a hole")
        position += entry.size
    if position != data_start + data_bytes:
        raise SourceInvalid(f"{name} has {data_bytes} bytes of data, not {position - data_start}")
    return tuple(entries)


def _entry(key: str, value: Any, data_start: int, name: str) -> TensorEntry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if (
            len(value) == 3 and _are_sizes([*shape, begin, end]) and len(shape) <= MOST_DIMENSIONS
        ):
            pass
        case _:
            raise SourceInvalid(f"{name} describes {key!r} in a way that makes no sense")
    if dtype not in ITEM_BYTES:
        raise UnsupportedModel(f"{name} stores {key!r} as {dtype[:32]!r}")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise SourceInvalid(f"{name} gives {key!r} a size that does not fit its shape")
    return TensorEntry(key, dtype, tuple(shape), data_start + begin, end - begin)


def _are_sizes(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)
