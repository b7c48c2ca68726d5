"""Safetensors of which no byte can be trusted: a typed error, soon, and without much memory."""

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from infra.errors import PlatformError, SourceInvalid, UnsupportedModel
from worker.weights.header import ITEM_BYTES, MOST_HEADER_BYTES, read_header
from worker.weights.loader import open_weights


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_of(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def test_the_makers_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, file_of({"a": tensor(), "__metadata__": {"format": "pt"}}))
    (entry,) = read_header(path)
    assert (entry.name, entry.shape, entry.size) == ("a", (2,), 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(file_of({}, length=1 << 63), "shorter than its header", id="length 2^63"),
        pytest.param(file_of({}, length=(1 << 64) - 1), "shorter", id="length 2^64-1"),
        pytest.param(file_of({"a": tensor()}, length=9), "not valid JSON", id="length too small"),
        pytest.param(file_of({"a": tensor()}, b""), "0 bytes of data, not 8", id="no data"),
        pytest.param(file_of({"a": tensor()}, bytes(7)), "7 bytes of data", id="truncated"),
        pytest.param(file_of({"a": tensor()}, bytes(9)), "9 bytes of data", id="bytes left over"),
        pytest.param(file_of(b'{"a":' * 100_000), "not valid JSON", id="nested deep"),
        pytest.param(file_of(b"[" * 100_000), "begin with an object", id="lists nested deep"),
        pytest.param(
            file_of(b'{"a": {}, "a": {}}'), "appears twice", id="one name for two tensors"
        ),
        pytest.param(
            file_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
            "appears twice",
            id="one field twice",
        ),
        pytest.param(file_of(b'{"\xff": 1}'), "not valid JSON", id="name that is not UTF-8"),
        pytest.param(file_of('{"a": 1}'.encode("utf-16")), "begin with", id="UTF-16"),
        pytest.param(file_of(b"\xef\xbb\xbf{}", b""), "begin with", id="byte order mark"),
        pytest.param(file_of(b" {}", b""), "begin with", id="space before the object"),
        pytest.param(file_of({"\ud800": tensor()}), "impossible name", id="half a surrogate pair"),
        pytest.param(file_of({"": tensor()}), "impossible name", id="no name"),
        pytest.param(file_of({"a" * 5000: tensor()}), "impossible name", id="long name"),
        pytest.param(file_of({"a": tensor(), "__metadata__": 1}), "metadata", id="metadata"),
        pytest.param(
            file_of({"a": tensor(), "__metadata__": {"a": {"b": "c"}}}), "metadata", id="nested"
        ),
        pytest.param(
            file_of({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)),
            "overlap",
            id="overlap",
        ),
        pytest.param(
            file_of({"a": tensor(), "b": tensor(offsets=(12, 20))}, bytes(20)), "hole", id="hole"
        ),
        pytest.param(file_of({"a": tensor(offsets=(8, 0))}), "does not fit", id="descending"),
        pytest.param(
            file_of({"a": tensor(shape=(1 << 61,), offsets=(0, 1 << 63))}), "no sense", id="2^63"
        ),
        pytest.param(
            file_of({"a": tensor(shape=(1 << 40,), offsets=(0, 1 << 42))}), "8 bytes", id="beyond"
        ),
        pytest.param(
            file_of({"a": tensor(shape=((1 << 62) + 1, 4), offsets=(0, 16))}, bytes(16)),
            "does not fit",
            id="shape that overflows 64 bits to the right size",
        ),
        pytest.param(b"PK\x03\x04" + bytes(100), "archive as torch.save", id="zipped pickle"),
        pytest.param(b"\x80\x02}q\x00" + b"x" * 100, "is a pickle", id="pickle"),
        pytest.param(b"GGUF\x03\x00\x00\x00" + bytes(100), "is a GGUF", id="GGUF"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", id="LFS"),
        pytest.param(b"<!DOCTYPE html><html>", "shorter than its header says", id="web page"),
    ],
)
def test_what_does_not_add_up_is_refused_and_named(
    tmp_path: Path, content: bytes, words: str
) -> None:
    write(tmp_path, content)
    with pytest.raises(SourceInvalid, match=words) as caught:
        open_weights(tmp_path, lambda fraction: None)
    assert "model.safetensors" in caught.value.detail
    caught.value.detail.encode()


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "", "f32", "F32\n", "\u202e"])
def test_unknown_number_formats_are_said_to_be_unsupported(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, file_of({"a": tensor(dtype)}))
    with pytest.raises(UnsupportedModel, match="stores 'a' as"):
        read_header(path)


def test_a_header_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(SourceInvalid, match="header of 100000001 bytes"):
            read_header(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MOST_HEADER_BYTES // 8


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "consolidated.00.pth"]
)
def test_pickled_weights_are_refused_whatever_they_hold(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedModel, match=name) as caught:
        open_weights(tmp_path, lambda fraction: None)
    assert "never loaded" in (caught.value.hint or "")


sizes = st.one_of(st.integers(-2, 40), st.sampled_from([1 << 31, 1 << 62, 1 << 63, 1 << 64]))
descriptions = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*ITEM_BYTES, "F4", "X"]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, min_size=1, max_size=3),
    }
)


def fits(described: list[tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    """A header that adds up, and the bytes that follow it."""
    header: dict[str, Any] = {}
    end = 0
    for index, (dtype, shape) in enumerate(described):
        size = ITEM_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        header[f"t{index}"] = tensor(dtype, shape, (end, end + size))
        end += size
    return header, end


right = st.lists(
    st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 4), max_size=3)),
    min_size=1,
    max_size=4,
).map(fits)
wrong = st.tuples(
    st.dictionaries(st.text(max_size=3), descriptions, max_size=3), st.integers(0, 40)
)
unhurried = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


@unhurried
@given(st.one_of(right, wrong), st.data())
def test_whatever_is_accepted_the_reference_reads_as_the_same_bytes(
    tmp_path: Path, described: tuple[dict[str, Any], int], data: st.DataObject
) -> None:
    header, num_bytes = described
    content = bytearray(file_of(header, bytes(index % 251 for index in range(num_bytes))))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[place] = data.draw(st.integers(0, 255))
    path = write(tmp_path, bytes(content))
    try:
        entries = read_header(path)
    except PlatformError as error:
        error.detail.encode()
        return
    with safe_open(path, framework="np") as reference:
        assert {entry.name for entry in entries} == set(reference.keys())
        for entry in entries:
            if entry.dtype in {"BF16", "F8_E4M3", "F8_E5M2"}:  # numpy has none of them
                continue
            expected = reference.get_tensor(entry.name)
            assert entry.shape == expected.shape
            assert bytes(content[entry.start : entry.stop]) == expected.tobytes()


@unhurried
@given(right)
def test_whatever_adds_up_is_accepted(
    tmp_path: Path, described: tuple[dict[str, Any], int]
) -> None:
    header, num_bytes = described
    path = write(tmp_path, file_of(header, bytes(num_bytes)))
    assert {entry.name for entry in read_header(path)} == header.keys()
