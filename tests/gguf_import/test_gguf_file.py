import random
import struct
from pathlib import Path

import pytest

from infra.errors import PlatformError, SourceInvalid, UnsupportedModel
from tests.gguf_import.tiny import write_gguf
from worker.weights.gguf_import import import_gguf
from worker.weights.gguf_reader import read_gguf


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(*, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor(
    name: bytes, *shape: int, offset: int = 0, encoding: int = 0, dims: int | None = None
) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(shape) if dims is None else dims)
        + b"".join(struct.pack("<Q", size) for size in shape)
        + struct.pack("<IQ", encoding, offset)
    )


KEY = text(b"k")
ONE_TENSOR = header(tensors=1)
DATA = b"\0" * 256

HOSTILE = {
    "nothing": (b"", SourceInvalid, "empty"),
    "another format": (b"PK\3\4" + DATA, SourceInvalid, "is not a GGUF file"),
    "version 1": (header(version=1), UnsupportedModel, "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModel, "big-endian"),
    "2^63 keys": (header(keys=1 << 63), SourceInvalid, "keys"),
    "2^63 tensors": (header(tensors=1 << 63), SourceInvalid, "tensors"),
    "keys that are not there": (header(keys=4096), SourceInvalid, "ends within"),
    "a string of 2^64 - 1 bytes": (
        header(keys=1) + KEY + struct.pack("<IQ", 8, (1 << 64) - 1),
        SourceInvalid,
        "bytes in a string",
    ),
    "an array of 2^62 bytes": (
        header(keys=1) + KEY + struct.pack("<IIQ", 9, 0, 1 << 62),
        SourceInvalid,
        "array items",
    ),
    "an array longer than the file": (
        header(keys=1) + KEY + struct.pack("<IIQ", 9, 10, 1 << 22),
        SourceInvalid,
        "ends within",
    ),
    "arrays in arrays": (
        header(keys=1) + KEY + struct.pack("<IIQ", 9, 9, 1) * 100_000,
        SourceInvalid,
        "array of arrays",
    ),
    "an unknown value type": (
        header(keys=1) + KEY + struct.pack("<I", 99),
        SourceInvalid,
        "value type 99",
    ),
    "a key twice": (
        header(keys=2) + (KEY + struct.pack("<II", 4, 1)) * 2,
        SourceInvalid,
        "'k' twice",
    ),
    "bytes that are no UTF-8": (
        header(keys=1) + text(b"\xff\xfe") + struct.pack("<II", 4, 1),
        SourceInvalid,
        "not UTF-8",
    ),
    "alignment 3": (
        header(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 3),
        SourceInvalid,
        "power of two",
    ),
    "alignment 0": (
        header(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
        SourceInvalid,
        "power of two",
    ),
    "no dimensions": (ONE_TENSOR + tensor(b"t"), SourceInvalid, "0 dimensions"),
    "2^32 - 1 dimensions": (
        ONE_TENSOR + tensor(b"t", dims=(1 << 32) - 1),
        SourceInvalid,
        "dimensions",
    ),
    "a size of zero": (ONE_TENSOR + tensor(b"t", 0, 4) + DATA, SourceInvalid, "shape"),
    "2^126 elements": (
        ONE_TENSOR + tensor(b"t", 1 << 63, 1 << 63) + DATA,
        SourceInvalid,
        "ends before",
    ),
    "half a block": (ONE_TENSOR + tensor(b"t", 31, encoding=8) + DATA, SourceInvalid, "Q8_0"),
    "an unknown encoding": (
        ONE_TENSOR + tensor(b"t", 32, encoding=999) + DATA,
        UnsupportedModel,
        "encoding 999",
    ),
    "an offset out of the file": (
        ONE_TENSOR + tensor(b"t", 32, offset=1 << 62) + DATA,
        SourceInvalid,
        "ends before",
    ),
    "an odd offset": (
        ONE_TENSOR + tensor(b"t", 8, offset=1) + DATA,
        SourceInvalid,
        "wrong offset",
    ),
    "a tensor twice": (
        header(tensors=2) + tensor(b"t", 8) + tensor(b"t", 8, offset=32) + DATA,
        SourceInvalid,
        "'t' twice",
    ),
    "tensors that share bytes": (
        header(tensors=2) + tensor(b"a", 16) + tensor(b"b", 16, offset=32) + DATA,
        SourceInvalid,
        "wrong offset",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_gets_a_typed_error(tmp_path: Path, name: str) -> None:
    content, error, words = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)

    with pytest.raises(error, match=words):
        read_gguf(path)


def test_a_file_cut_anywhere_gets_a_typed_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"

    for length in range(0, len(whole) - 1, 997):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceInvalid):
            read_gguf(path)


def test_flipped_bytes_never_raise_anything_untyped(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "flipped.gguf"
    dice = random.Random(11)

    for attempt in range(60):
        flipped = bytearray(whole)
        for _ in range(dice.choice([1, 8])):
            flipped[dice.randrange(12_000)] = dice.randrange(256)
        path.write_bytes(flipped)
        try:
            import_gguf(path, tmp_path / f"model-{attempt}", lambda fraction, step: None)
        except PlatformError:
            assert not (tmp_path / f"model-{attempt}").exists()


def test_a_folder_or_nothing_at_the_path_gets_a_typed_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(SourceInvalid, match="cannot read"):
            read_gguf(path)
