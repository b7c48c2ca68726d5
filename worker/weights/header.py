"""The header of a safetensors file, read with suspicion (https://github.com/huggingface/safetensors)."""

import math
import os
import stat
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
MOST_NAME_BYTES = 4096
MOST_DIMENSIONS = 8
LENGTH_BYTES = 8  # of the number before the header: its length, little-endian

_PICKLE = "pickled weights can run code and are never loaded"
# What files that call themselves safetensors turn out to be, by their first bytes.
_IMPOSTORS = {
    b"PK\x03\x04": f"is an archive as torch.save writes it: {_PICKLE}",
    b"\x80\x02": f"is a pickle: {_PICKLE}",
    b"\x80\x03": f"is a pickle: {_PICKLE}",
    b"\x80\x04": f"is a pickle: {_PICKLE}",
    b"\x80\x05": f"is a pickle: {_PICKLE}",
    b"GGUF": "is a GGUF file",
    b"version ": "is a pointer of Git LFS, not the file that it points to",
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; `start` counts bytes from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """The file's tensors in the order of their bytes.

    Raises SourceInvalid when the file is missing, truncated or inconsistent: every byte after the
    header belongs to exactly one tensor, and every tensor has the bytes that its shape needs.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise SourceInvalid(f"{path.name} is missing or not a regular file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SourceInvalid(f"{path.name} is not a regular file")
            first = file.read(LENGTH_BYTES)
            length = header_bytes(first, file_bytes=status.st_size, name=path.name)
            text = file.read(length)
    except OSError as error:
        raise SourceInvalid(f"{path.name} cannot be read: {error.strerror}") from error
    if len(text) != length:
        raise SourceInvalid(f"{path.name} became shorter while it was read")
    data_bytes = status.st_size - LENGTH_BYTES - length
    return parse_header(text, data_bytes=data_bytes, name=path.name)


def header_bytes(first: bytes, *, file_bytes: int, name: str) -> int:
    """The header's length, of the first eight bytes of a file of that size."""
    for magic, what in _IMPOSTORS.items():
        if first.startswith(magic) and int.from_bytes(first, "little") > MOST_HEADER_BYTES:
            raise SourceInvalid(f"{name} {what}", hint="convert it to safetensors")
    length = int.from_bytes(first, "little")
    if len(first) < LENGTH_BYTES or length > file_bytes - LENGTH_BYTES:
        raise SourceInvalid(f"{name} is shorter than its header says")
    if length > MOST_HEADER_BYTES:
        raise SourceInvalid(f"{name} has a header of {length} bytes", limit_bytes=MOST_HEADER_BYTES)
    return length


def parse_header(text: bytes, *, data_bytes: int, name: str) -> tuple[TensorEntry, ...]:
    """The tensors that a header's JSON text describes, when `data_bytes` follow it."""
    if not text.startswith(b"{"):  # as the format has it; JSON would allow other encodings
        raise SourceInvalid(f"the header of {name} does not begin with an object")
    fields = parse_json_object(text, name=f"the header of {name}")
    _check_metadata(fields.pop("__metadata__", {}), name)
    data_start = LENGTH_BYTES + len(text)
    entries = sorted(
        (_entry(key, value, data_start, name) for key, value in fields.items()),
        key=lambda entry: (entry.start, entry.size),
    )
    position = data_start
    for entry in entries:
        if entry.start != position:
            raise SourceInvalid(f"{name}: the bytes of {entry.name!a} overlap or leave a hole")
        position += entry.size
    if position != data_start + data_bytes:
        raise SourceInvalid(f"{name} has {data_bytes} bytes of data, not {position - data_start}")
    return tuple(entries)


def _check_metadata(metadata: Any, name: str) -> None:
    match metadata:
        case dict() if all(isinstance(value, str) for value in metadata.values()):
            pass
        case _:
            raise SourceInvalid(f"the metadata of {name} are no texts by name")


def _entry(key: str, value: Any, data_start: int, name: str) -> TensorEntry:
    if not _is_name(key):
        raise SourceInvalid(f"{name} has a tensor with an impossible name: {key[:100]!a}")
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if (
            len(value) == 3 and _are_sizes([*shape, begin, end]) and len(shape) <= MOST_DIMENSIONS
        ):
            pass
        case _:
            raise SourceInvalid(f"{name} describes {key!a} in a way that makes no sense")
    if dtype not in ITEM_BYTES:
        raise UnsupportedModel(f"{name} stores {key!a} as {dtype[:32]!a}")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise SourceInvalid(f"{name} gives {key!a} a size that does not fit its shape")
    return TensorEntry(key, dtype, tuple(shape), data_start + begin, end - begin)


def _are_sizes(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _is_name(key: str) -> bool:
    """Whether it is text: half a surrogate pair can be written in JSON, and nowhere else."""
    try:
        return 0 < len(key.encode()) <= MOST_NAME_BYTES
    except UnicodeEncodeError:
        return False
