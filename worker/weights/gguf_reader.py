"""Reads the header of a GGUF file, every length in it bounded before it is used."""

import mmap
import struct
from collections.abc import Mapping
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Final

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.gguf_file import GgufFile, GgufTensor, Scalar, Value

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

MAX_HEADER_BYTES: Final = 512 << 20
MAX_KEYS: Final = 4096
MAX_TENSORS: Final = 1 << 16
MAX_DIMENSIONS: Final = 4
MAX_NAME_BYTES: Final = 1024
MAX_STRING_BYTES: Final = 4 << 20
MAX_ARRAY_ITEMS: Final = 1 << 22


class _Type(IntEnum):
    """Value types on the wire."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_STRUCT_CODES: Final = {
    _Type.UINT8: "B",
    _Type.INT8: "b",
    _Type.UINT16: "H",
    _Type.INT16: "h",
    _Type.UINT32: "I",
    _Type.INT32: "i",
    _Type.FLOAT32: "f",
    _Type.BOOL: "?",
    _Type.UINT64: "Q",
    _Type.INT64: "q",
    _Type.FLOAT64: "d",
}


def read_gguf(path: Path) -> GgufFile:
    """Reads and checks the header of a version 2 or 3 file; no tensor is touched.

    Raises SourceInvalid for what is no GGUF or a broken one, UnsupportedModel for versions and
    tensor encodings that this reader does not know.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except OSError as error:
        raise SourceInvalid(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # mmap of an empty file
        raise SourceInvalid(f"{path.name}: {error}") from error


class _Reader:
    """Walks the header once, front to back."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0
        self._end = min(len(data), MAX_HEADER_BYTES)

    def read(self) -> GgufFile:
        self._check_magic_and_version()
        tensor_count = self._count(MAX_TENSORS, "tensors")
        key_count = self._count(MAX_KEYS, "keys")
        metadata = self._metadata(key_count)
        infos = [self._tensor_info() for _ in range(tensor_count)]
        tensors = self._placed(infos, self._alignment(metadata))
        return GgufFile(self._path, metadata, tensors)

    def _check_magic_and_version(self) -> None:
        if self._take(4) != MAGIC:
            raise self._invalid("is not a GGUF file")
        version = self._unpack("I")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            raise UnsupportedModel(
                f"{self._path.name}: "
                + ("big-endian GGUF" if swapped else f"GGUF version {version}")
                + " is not supported",
                hint="versions 2 and 3, little-endian, can be imported",
            )

    def _metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self._string(MAX_NAME_BYTES)
            if key in metadata:
                raise self._invalid(f"has the key {key!r} twice")
            metadata[key] = self._value(self._type())
        return metadata

    def _value(self, kind: _Type) -> Value:
        match kind:
            case _Type.STRING:
                return self._string(MAX_STRING_BYTES)
            case _Type.ARRAY:
                return self._array()
            case _:
                return self._unpack(_STRUCT_CODES[kind])

    def _array(self) -> tuple[Scalar, ...]:
        kind = self._type()
        count = self._count(MAX_ARRAY_ITEMS, "array items")
        match kind:
            case _Type.ARRAY:
                raise self._invalid("has an array of arrays")
            case _Type.STRING:
                return tuple(self._string(MAX_STRING_BYTES) for _ in range(count))
            case _:
                layout = struct.Struct(f"<{count}{_STRUCT_CODES[kind]}")
                return layout.unpack(self._take(layout.size))

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string(MAX_NAME_BYTES)
        dimensions = self._unpack("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._invalid(f"gives tensor {name!r} {dimensions} dimensions")
        shape = tuple(reversed([self._unpack("Q") for _ in range(dimensions)]))
        code = self._unpack("I")
        try:
            encoding = GGMLQuantizationType(code)
        except ValueError:
            raise UnsupportedModel(
                f"{self._path.name}: tensor {name!r} has the unknown encoding {code}"
            ) from None
        return name, shape, encoding, self._unpack("Q")

    def _placed(
        self, infos: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]], alignment: int
    ) -> dict[str, GgufTensor]:
        """Checks that every tensor lies in the file, aligned, and shares no byte with another."""
        data_start = -(-self._at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        free_from = 0
        for name, shape, encoding, offset in sorted(infos, key=lambda info: info[3]):
            if name in tensors:
                raise self._invalid(f"has the tensor {name!r} twice")
            size = self._byte_size(name, shape, encoding)
            if offset % alignment or offset < free_from:
                raise self._invalid(f"puts tensor {name!r} at a wrong offset, {offset}")
            free_from = offset + size
            if data_start + free_from > len(self._data):
                raise self._invalid(f"ends before its tensor {name!r} does")
            tensors[name] = GgufTensor(name, shape, encoding, data_start + offset, size)
        return tensors

    def _byte_size(self, name: str, shape: tuple[int, ...], encoding: GGMLQuantizationType) -> int:
        block_elements, block_bytes = GGML_QUANT_SIZES[encoding]
        if min(shape) < 1 or shape[-1] % block_elements:
            raise self._invalid(f"gives tensor {name!r} the shape {list(shape)} as {encoding.name}")
        return prod(shape) // block_elements * block_bytes

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or not 1 <= alignment <= 1 << 20
            or alignment.bit_count() != 1
        ):
            raise self._invalid("has a general.alignment that is no power of two")
        return alignment

    def _type(self) -> _Type:
        code = self._unpack("I")
        try:
            return _Type(code)
        except ValueError:
            raise self._invalid(f"has the unknown value type {code}") from None

    def _string(self, limit: int) -> str:
        raw = self._take(self._count(limit, "bytes in a string"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._invalid("has a string that is not UTF-8") from None

    def _count(self, limit: int, what: str) -> int:
        count: int = self._unpack("Q")
        if count > limit:
            raise self._invalid(f"claims {count} {what}, at most {limit} are accepted")
        return count

    def _unpack(self, code: str) -> int:
        layout = struct.Struct("<" + code)
        value: int = layout.unpack(self._take(layout.size))[0]
        return value

    def _take(self, size: int) -> bytes:
        if self._at + size > self._end:
            raise self._invalid("ends within its header")
        self._at += size
        return self._data[self._at - size : self._at]

    def _invalid(self, what: str) -> SourceInvalid:
        return SourceInvalid(f"{self._path.name} {what}")
