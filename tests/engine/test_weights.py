"""Reading safetensors: what is right maps without a copy, what is wrong is refused."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from infra.errors import PlatformError, SourceInvalid, UnsupportedModel
from worker.weights.header import TensorEntry, parse_header, read_header
from worker.weights.loader import open_weights
from worker.weights.plan import plan_weights


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parse(fields: Any, data_bytes: int = 8) -> tuple[TensorEntry, ...]:
    return parse_header(json.dumps(fields).encode(), data_bytes=data_bytes, name="x.safetensors")


def nothing(fraction: float) -> None:
    pass


def test_entries_are_in_the_order_of_their_bytes() -> None:
    fields = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", (2, 2), (4, 12)),
        "a": entry("F32", (), (0, 4)),
        "none": entry("F32", (0, 5), (12, 12)),
    }
    start = 8 + len(json.dumps(fields))
    assert parse(fields, 12) == (
        TensorEntry("a", "F32", (), start, 4),
        TensorEntry("b", "BF16", (2, 2), start + 4, 8),
        TensorEntry("none", "F32", (0, 5), start + 12, 0),
    )


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="no object"),
        pytest.param({"a": 1}, id="no description"),
        pytest.param({"a": entry() | {"more": 1}}, id="unknown key"),
        pytest.param({"a": {"dtype": "F32", "shape": [2]}}, id="no offsets"),
        pytest.param({"a": entry(shape=(3,))}, id="another size"),
        pytest.param({"a": entry(shape=(-2,))}, id="negative dimension"),
        pytest.param({"a": entry(shape=(True, 2))}, id="boolean dimension"),
        pytest.param({"a": entry(shape=(2.0,))}, id="fractional dimension"),
        pytest.param({"a": entry(shape=("2",))}, id="text dimension"),
        pytest.param({"a": entry(shape=(1,) * 9)}, id="too many dimensions"),
        pytest.param({"a": entry(shape=(1 << 32, 1 << 32))}, id="overflow"),
        pytest.param({"a": entry(shape=(1 << 64, 0), offsets=(0, 0))}, id="huge dimension"),
        pytest.param({"a": entry(offsets=(8, 0))}, id="backwards"),
        pytest.param({"a": entry(offsets=(0, 8, 9))}, id="three offsets"),
        pytest.param({"a": entry(), "b": entry()}, id="overlap"),
        pytest.param({"a": entry(shape=(1,), offsets=(4, 8))}, id="hole at the front"),
        pytest.param({"a": entry(shape=(1,), offsets=(0, 4))}, id="bytes left over"),
        pytest.param({"a": entry(shape=(3,), offsets=(0, 12))}, id="beyond the file"),
        pytest.param({}, id="data without tensors"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(fields: Any) -> None:
    with pytest.raises(SourceInvalid):
        parse(fields)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a": 1, "a": 2}',
        b"9" * 10_000,
        b'{"a": NaN}',
    ],
)
def test_a_header_that_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(SourceInvalid):
        parse_header(text, data_bytes=0, name="x.safetensors")


def test_an_unknown_number_format_is_said_to_be_unsupported() -> None:
    with pytest.raises(UnsupportedModel, match="Q4_7"):
        parse({"a": entry("Q4_7")})


@given(st.binary(max_size=200))
def test_no_header_makes_anything_but_a_typed_error(text: bytes) -> None:
    with contextlib.suppress(PlatformError):
        parse_header(text, data_bytes=8, name="x.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"\x01", (1 << 40).to_bytes(8, "little"), (5).to_bytes(8, "little") + b"{}"]
)
def test_a_truncated_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceInvalid):
        open_weights(tmp_path, nothing)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((1 << 32).to_bytes(8, "little"))
        file.truncate(1 << 33)  # sparse
    with pytest.raises(SourceInvalid, match="header of 4294967296 bytes"):
        read_header(path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(SourceInvalid):
        open_weights(tmp_path, nothing)


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).view(2, 3),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    progress: list[float] = []

    weights = open_weights(tmp_path, progress.append)

    assert torch.equal(weights.take("a", (2, 3), torch.float32), tensors["a"])
    assert torch.equal(weights.take("b", (2,), torch.bfloat16), tensors["b"])
    first, again = (weights.take("a", (2, 3), torch.float32) for _ in range(2))
    assert first.data_ptr() == again.data_ptr()
    assert weights.take("b", (2,), torch.float32).tolist() == [1.5, -2.0]
    assert progress == [1.0]
    assert weights.total_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert "a" in weights and "c" not in weights


def test_tensors_that_are_not_aligned_are_read_all_the_same(tmp_path: Path) -> None:
    header = json.dumps(
        {"odd": entry("U8", (1,), (0, 1)), "a": entry("F32", (2,), (1, 9))}
    ).encode()
    values = torch.tensor([3.0, 4.0])
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"!" + values.numpy().tobytes()
    )
    weights = open_weights(tmp_path, nothing)
    assert torch.equal(weights.take("a", (2,), torch.float32), values)
    with pytest.raises(UnsupportedModel, match="U8"):
        weights.take("odd", (1,), torch.float32)


def test_missing_tensors_and_other_shapes_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path, nothing)
    with pytest.raises(SourceInvalid, match="no tensor 'b'"):
        weights.take("b", (1,), torch.float32)
    with pytest.raises(SourceInvalid, match=r"shape \[2, 3\].*\[3, 2\]"):
        weights.take("a", (3, 2), torch.float32)


def write_sharded(folder: Path, weight_map: dict[str, Any]) -> None:
    save_file({"a": torch.ones(2), "c": torch.ones(3)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(4)}, folder / "two.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    plan = plan_weights(tmp_path)
    assert [[each.name for each in shard.tensors] for shard in plan.shards] == [["a"], ["b"]]

    progress: list[float] = []
    weights = open_weights(tmp_path, progress.append)
    assert weights.take("a", (2,), torch.float32).tolist() == [1, 1]
    assert weights.take("b", (4,), torch.float32).tolist() == [0, 0, 0, 0]
    assert "c" not in weights
    assert len(progress) == 2 and 0 < progress[0] < progress[1] == 1.0


@pytest.mark.parametrize(
    "weight_map",
    [
        {},
        {"a": 1},
        {"a": "../one.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "sub/one.safetensors"},
        {"a": "one.bin"},
        {"a": "three.safetensors"},
        {"z": "one.safetensors"},
        {"a": "x\0.safetensors"},
    ],
)
def test_an_index_that_leads_astray_is_refused(tmp_path: Path, weight_map: dict[str, Any]) -> None:
    write_sharded(tmp_path, weight_map)
    with pytest.raises(SourceInvalid):
        plan_weights(tmp_path)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin"):
        open_weights(tmp_path, nothing)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="missing"):
        open_weights(tmp_path, nothing)


def test_a_part_reads_nothing_else_of_its_tensor(tmp_path: Path) -> None:
    """Bytes mapped into this process: files are mapped two megabytes at a time at most."""
    shape = (4096, 8192)
    save_file({"w": torch.ones(shape, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    weights = open_weights(tmp_path, lambda _: None, reads_ahead=False)

    rows = [range(512, 1024), range(2048, 2560)]
    kept = weights.part("w", shape, rows, range(8192), torch.float32)
    columns = weights.part("w", shape, [range(64)], range(4096, 8192), torch.float32)

    assert kept.shape == (1024, 8192) and columns.shape == (64, 4096)
    assert float(kept.sum()) == kept.numel()
    assert mapped_bytes(tmp_path) < kept.numel() * 2 + (12 << 20) < 64 << 20


def mapped_bytes(folder: Path) -> int:
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_ours = str(folder) in line
        elif is_ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total
