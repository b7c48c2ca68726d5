"""The node's cache of packed weights."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from worker.weights.packed_store import PackedStore

NOW = 1_600_000_000.0  # before any file of these tests
KEY = "sha256:abc int8 avx512 1"


def tensors(seed: int = 0, size: int = 1000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "shape": torch.tensor([8, 33]),
        "packed": torch.randint(0, 256, (2, 3, size), dtype=torch.uint8, generator=generator),
        "scale": torch.randn(33, generator=generator),
        "bias": torch.randn(7, generator=generator).to(torch.bfloat16),
    }


def assert_same(found: dict[str, torch.Tensor] | None, expected: dict[str, torch.Tensor]) -> None:
    assert found is not None and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_was_written_is_mapped_again(tmp_path: Path) -> None:
    store = PackedStore(tmp_path / "packed")

    assert store.open(KEY) is None
    assert store.write(KEY, tensors(), now=NOW)

    assert_same(store.open(KEY), tensors())
    assert store.open(KEY + "x") is None


def test_packed_tensors_begin_on_a_cache_line(tmp_path: Path) -> None:
    store = PackedStore(tmp_path)
    store.write(KEY, {"odd": torch.zeros(3), **tensors(size=1024)}, now=NOW)

    found = store.open(KEY)

    assert found is not None and found["packed"].data_ptr() % 64 == 0


def test_tensors_that_end_within_the_pieces_that_are_written_are_whole(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = (1, 3 << 20, 64, (9 << 20) + 5, 0, (4 << 20) - 64, 7)
    written = {
        f"of {size} bytes": torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        for size in sizes
    }
    store = PackedStore(tmp_path)

    store.write(KEY, written, now=NOW)

    assert_same(store.open(KEY), written)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def with_another_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff")


@pytest.mark.parametrize("damaged", [truncated, emptied, with_another_header])
def test_a_damaged_file_is_ignored_and_written_anew(
    tmp_path: Path, damaged: Callable[[Path], None]
) -> None:
    store = PackedStore(tmp_path)
    store.write(KEY, tensors(), now=NOW)
    damaged(files(tmp_path)[0])

    assert store.open(KEY) is None
    store.write(KEY, tensors(), now=NOW)
    assert_same(store.open(KEY), tensors())


def test_a_file_under_another_keys_name_is_not_taken(tmp_path: Path) -> None:
    store = PackedStore(tmp_path)
    store.write(KEY, tensors(), now=NOW)
    (mine,) = files(tmp_path)
    store.write("another", tensors(1), now=NOW)
    (other,) = set(files(tmp_path)) - {mine}
    mine.replace(other)

    assert store.open("another") is None


def test_the_file_opened_longest_ago_makes_room(tmp_path: Path) -> None:
    store = PackedStore(tmp_path, most_bytes=15_000)  # two files of 6 KB, not three
    store.write("a", tensors(), now=NOW)
    for path in files(tmp_path):
        os.utime(path, (NOW, NOW))
    store.write("b", tensors(), now=NOW)
    for path in files(tmp_path):
        os.utime(path, (NOW, NOW))
    store.open("a")  # now the later one of both

    store.write("c", tensors(), now=NOW)

    assert [key for key in "abc" if store.open(key) is not None] == ["a", "c"]


def test_what_does_not_fit_at_all_is_not_written(tmp_path: Path) -> None:
    store = PackedStore(tmp_path, most_bytes=10_000)
    store.write(KEY, tensors(), now=NOW)

    assert not store.write("huge", tensors(size=2000), now=NOW)

    assert store.open(KEY) is not None


def test_a_mapping_outlives_its_file(tmp_path: Path) -> None:
    store = PackedStore(tmp_path, most_bytes=10_000)
    store.write(KEY, tensors(), now=NOW)
    found = store.open(KEY)

    store.write("b", tensors(1), now=NOW)

    assert store.open(KEY) is None
    assert_same(found, tensors())


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    store = PackedStore(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: store.write(KEY, tensors(size=100_000), now=NOW), range(8)))

    assert len(files(tmp_path)) == 1
    assert_same(store.open(KEY), tensors(size=100_000))


def test_what_dead_writers_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    store = PackedStore(tmp_path)
    for name, age in (("old", 4000), ("new", 10)):
        path = tmp_path / f".{name}.partial"
        path.touch()
        os.utime(path, (NOW - age, NOW - age))

    store.write(KEY, tensors(), now=NOW)

    assert {path.name for path in tmp_path.glob(".*")} == {".new.partial"}
