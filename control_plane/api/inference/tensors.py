"""Tensors of the open inference protocol between JSON, bytes behind it, and Python values."""

import math
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from infra.contracts.inference import InputTensor
from infra.errors import Invalid

# Elements of parameters; prompts are bounded by what a completion takes.
MOST_ELEMENTS: Final = 1024

_FORMATS: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH: Final = struct.Struct("<I")


def elements_of(tensor: InputTensor, behind: "Behind", where: str) -> list[Any]:
    """The elements in row-major order, BYTES as text; `where` it stands is for errors.

    Raises Invalid for elements that are not as many as the shape says, or not text.
    """
    count = math.prod(tensor.shape)
    if not 1 <= count <= MOST_ELEMENTS:
        raise Invalid(
            f"{where}.shape has {count} elements; 1 to {MOST_ELEMENTS} are possible",
            param=f"{where}.shape",
            limit=MOST_ELEMENTS,
        )
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        elements = _flat(tensor, where)
    elif tensor.data is not None:
        raise Invalid(f"{where} has data and binary_data_size", param=f"{where}.data")
    else:
        elements = _unpacked(tensor.datatype, behind.take(size, where), count, where)
    if len(elements) != count:
        raise Invalid(
            f"{where} has {len(elements)} elements; its shape says {count}", param=f"{where}.data"
        )
    return elements


class Behind:
    """The bytes behind the JSON; tensors take theirs in order."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: object, where: str) -> bytes:
        """The next ones; raises Invalid where they are fewer."""
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(self._data):
            raise Invalid(
                f"{where}.parameters.binary_data_size is not within the bytes that were sent",
                param=f"{where}.parameters.binary_data_size",
            )
        taken, self._data = bytes(self._data[:size]), self._data[size:]
        return taken

    def check_empty(self) -> None:
        """Raises Invalid for bytes that no tensor took."""
        if self._data:
            raise Invalid(f"{len(self._data)} bytes behind the JSON belong to no input")


def packed(texts: Sequence[str]) -> bytes:
    """A BYTES tensor as it stands behind the JSON: a little-endian length before each element."""
    encoded = (text.encode() for text in texts)
    return b"".join(_LENGTH.pack(len(each)) + each for each in encoded)


def _flat(tensor: InputTensor, where: str) -> list[Any]:
    if tensor.data is None:
        raise Invalid(
            f"{where} has neither data nor parameters.binary_data_size", param=f"{where}.data"
        )
    elements: list[Any] = tensor.data
    for _ in tensor.shape:  # as deep as it may nest
        if not any(isinstance(each, list) for each in elements):
            break
        elements = [inner for each in elements for inner in _inner(each, where)]
        if len(elements) > MOST_ELEMENTS:
            break  # the count says so
    if tensor.datatype == "BYTES" and not all(isinstance(each, str) for each in elements):
        raise _not_text(where)
    return elements


def _inner(each: object, where: str) -> list[Any]:
    if not isinstance(each, list):
        raise Invalid(f"{where}.data is nested unevenly", param=f"{where}.data")
    return each


def _unpacked(datatype: str, data: bytes, count: int, where: str) -> list[Any]:
    if datatype == "BYTES":
        try:
            return [each.decode() for each in islice(_split(data), count + 1)]
        except (struct.error, UnicodeDecodeError):
            raise _not_text(where) from None
    try:
        return list(struct.unpack(f"<{count}{_FORMATS[datatype]}", data))
    except struct.error:
        raise Invalid(
            f"{where} has {len(data)} bytes; its shape and datatype say otherwise",
            param=f"{where}.parameters.binary_data_size",
        ) from None


def _split(data: bytes) -> Iterator[bytes]:
    """Raises struct.error where a length is cut, or says more than there is."""
    start = 0
    while start < len(data):
        [length] = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if start + length > len(data):
            raise struct.error
        yield data[start : start + length]
        start += length


def _not_text(where: str) -> Invalid:
    return Invalid(f"{where} is not text in UTF-8", param=f"{where}.data")
