import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.blob.blob import Blob
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.store import ChunkStore
from snapshotter.blob.stored_blob import BlobRef, StoredBlob
from snapshotter.index.chunk_table import UNKNOWN, Chunk, ChunkTable
from tests.snapshotter.makers import raw_blob
from tests.snapshotter.scripted import ScriptedSource
from tests.support.processes import require

PARTS = [b"a" * 5000, b"b" * 3000, b"c" * 7000]


def store_in(folder: Path, *, capacity: int = 1 << 30, boot: str = "boot-1") -> ChunkStore:
    return ChunkStore(folder, capacity_bytes=capacity, boot_id=boot)


def fill(store: ChunkStore, ref: BlobRef, data: bytes) -> None:
    with store.opened(ref):
        for chunk in ref.table:
            assert store.put(ref, chunk, data[chunk.offset : chunk.end])


@pytest.fixture
def mounted_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    require(os.geteuid() == 0, "root, which mounting needs,")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_chunk_is_here_once_it_was_put_and_not_before(tmp_path):
    store = store_in(tmp_path)
    ref, _ = raw_blob(PARTS)
    stored = store.open(ref)

    assert not store.has(ref.digest, 1)
    store.put(ref, ref.table[1], PARTS[1])

    assert [store.has(ref.digest, index) for index in range(3)] == [False, True, False]
    assert stored.pread(5000, 3000) == PARTS[1]


def test_wrong_bytes_are_never_kept(tmp_path):
    store = store_in(tmp_path)
    ref, _ = raw_blob(PARTS)
    store.open(ref)

    for wrong in (b"x" * 3000, PARTS[1][:-1], PARTS[1] + b"b", b""):
        with pytest.raises(ValueError, match="not what the index says"):
            store.put(ref, ref.table[1], wrong)

    assert not store.has(ref.digest, 1)


def test_what_was_verified_is_there_after_a_restart_of_the_process(tmp_path):
    ref, data = raw_blob(PARTS)
    first = store_in(tmp_path)
    fill(first, ref, data)
    first.close()

    second = store_in(tmp_path)

    assert all(second.has(ref.digest, index) for index in range(3))


def test_what_a_crash_of_the_machine_damaged_is_not_believed(tmp_path):
    ref, data = raw_blob(PARTS)
    first = store_in(tmp_path)
    fill(first, ref, data)
    first.close()
    with (tmp_path / ref.hex / "data").open("r+b") as file:
        file.seek(5100)
        file.write(b"\0" * 512)

    second = store_in(tmp_path, boot="boot-2")

    assert [second.has(ref.digest, index) for index in range(3)] == [True, False, True]


def test_chunks_of_no_known_digest_are_not_taken_for_one_another_nor_kept_through_a_crash(tmp_path):
    table = ChunkTable([Chunk(0, 0, 5, UNKNOWN, 0, 5), Chunk(1, 5, 5, UNKNOWN, 5, 5)])
    ref = BlobRef("sha256:" + "1" * 64, table)
    store = store_in(tmp_path)
    fill(store, ref, b"one..two..")

    assert (store.find(UNKNOWN), store.read_chunk(UNKNOWN)) == (None, None)
    assert [store.has(ref.digest, index) for index in range(2)] == [True, True]
    with pytest.raises(ValueError, match="chunk 0"):
        store.open(ref).verify(table[0], b"longer")
    store.close()

    again = store_in(tmp_path, boot="boot-2")
    assert [again.has(ref.digest, index) for index in range(2)] == [False, False]
    again.close()


def test_another_cut_of_the_same_blob_begins_anew(tmp_path):
    ref, data = raw_blob(PARTS)
    store = store_in(tmp_path)
    fill(store, ref, data)
    other = BlobRef(ref.digest, raw_blob([PARTS[0] + PARTS[1], PARTS[2]])[0].table)

    store.open(other)

    assert not store.has(ref.digest, 0)
    with pytest.raises(Exception, match="in use with another index"):
        store.open(ref)


def test_one_process_owns_the_folder(tmp_path):
    store = store_in(tmp_path)
    with pytest.raises(BlockingIOError):
        store_in(tmp_path)
    store.close()
    store_in(tmp_path).close()


def test_the_least_recently_used_goes_first_and_never_what_is_open(tmp_path):
    store = store_in(tmp_path, capacity=45_000)
    blobs = [raw_blob([bytes([number]) * 20_000]) for number in range(4)]
    fill(store, *blobs[0])
    fill(store, *blobs[1])
    store.open(blobs[0][0])

    fill(store, *blobs[2])
    fill(store, *blobs[3])

    here = [store.has(ref.digest, 0) for ref, _ in blobs]
    assert here == [True, False, False, True]
    assert store.used_bytes == 40_000


def test_a_store_full_of_open_blobs_keeps_nothing_more(tmp_path):
    store = store_in(tmp_path, capacity=25_000)
    first, data = raw_blob([b"1" * 20_000])
    second, more = raw_blob([b"2" * 20_000])
    store.open(first)
    store.open(second)

    assert store.put(first, first.table[0], data)
    assert not store.put(second, second.table[0], more)

    assert not store.has(second.digest, 0)


def test_a_full_disk_costs_what_nobody_uses_first(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    idle, idle_data = raw_blob([b"1" * 20_000])
    fill(store, idle, idle_data)
    wanted, data = raw_blob([b"2" * 20_000])
    store.open(wanted)
    write = StoredBlob.write

    def write_if_room(self: StoredBlob, chunk, data, verified_by, **options):
        if (tmp_path / idle.hex).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, chunk, data, verified_by, **options)

    monkeypatch.setattr(StoredBlob, "write", write_if_room)

    assert store.put(wanted, wanted.table[0], data)
    assert not (tmp_path / idle.hex).exists()


@pytest.mark.real
def test_on_a_disk_that_is_full_every_byte_is_read_and_others_make_place(tmp_path, mounted_disk):
    store = store_in(mounted_disk)
    large, data = raw_blob([bytes([number]) * 64_000 for number in range(20)])
    fetcher = Fetcher(store)
    blob = Blob(large, [ScriptedSource(data)], fetcher)

    assert [blob.read(chunk.offset, chunk.length) for chunk in large.table] == [
        data[chunk.offset : chunk.end] for chunk in large.table
    ]
    assert 0 < len(blob.missing) < 20, "a part of it fitted"
    with (mounted_disk / "the rest").open("wb", buffering=0) as rest, suppress(OSError):
        while True:
            rest.write(bytes(512))
    other, more = raw_blob([b"more" * 2000] * 4)
    with pytest.raises(OSError, match="No space"):
        store.open(other)

    blob.close()
    second = Blob(other, [ScriptedSource(more)], fetcher)
    assert second.read(0, len(more)) == more and second.missing == []
    fetcher.close()
    store.close()


def test_digests_that_a_full_disk_refuses_are_held_against_what_is_here_nonetheless(
    tmp_path, monkeypatch
):
    proven, _ = raw_blob(PARTS)
    unknown = [
        Chunk(it.index, it.offset, it.length, UNKNOWN, it.source_offset, it.source_length)
        for it in proven.table
    ]
    store = store_in(tmp_path)
    stored = store.open(BlobRef(proven.digest, ChunkTable(unknown)))
    store.put(stored.ref, stored.table[0], PARTS[0])
    store.put(stored.ref, stored.table[1], bytes(len(PARTS[1])))

    def refuse(self: StoredBlob) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(StoredBlob, "_write_table", refuse)
    store.learn(proven)

    assert [store.has(proven.digest, index) for index in range(3)] == [True, False, False]
    store.close()
    monkeypatch.undo()
    again = store_in(tmp_path)
    assert not any(again.has(proven.digest, index) for index in range(3)), "begun anew"
    again.close()


def test_equal_chunks_are_found_in_whatever_blob_has_them(tmp_path):
    store = store_in(tmp_path)
    first, data = raw_blob([b"libtorch" * 1000, b"one" * 1000])
    second, _ = raw_blob([b"two" * 1000, b"libtorch" * 1000])
    fill(store, first, data)
    store.open(second)

    chunk = second.table[1]

    assert not store.has(second.digest, 1)
    location = store.find(chunk.digest)
    assert location is not None
    assert location.blob == first.digest
    assert store.read_chunk(chunk.digest) == b"libtorch" * 1000
    assert store.find(second.table[0].digest) is None


def test_a_chunk_that_this_disk_has_spoiled_is_here_no_longer(tmp_path):
    store = store_in(tmp_path)
    ref, data = raw_blob(PARTS)
    fill(store, ref, data)
    store.open(ref)
    with store.data_path(ref.digest).open("r+b") as file:
        file.seek(ref.table[1].offset)
        file.write(b"B")

    assert store.read_chunk(ref.table[1].digest) is None

    assert [store.has(ref.digest, index) for index in range(3)] == [True, False, True]
    assert store.used_bytes == len(PARTS[0]) + len(PARTS[2])
    assert store.put(ref, ref.table[1], PARTS[1])
    assert store.read_chunk(ref.table[1].digest) == PARTS[1]
    store.close()


def test_a_folder_that_is_no_blob_is_discarded_at_the_start(tmp_path):
    (tmp_path / ("0" * 64)).mkdir()
    (tmp_path / ("0" * 64) / "table").write_bytes(b"not a table")

    store = store_in(tmp_path)

    assert store.blobs() == {}
    assert not (tmp_path / ("0" * 64)).exists()


def unproven(ref: BlobRef) -> BlobRef:
    """The same blob before anybody knew the digests of its chunks."""
    chunks = [replace(chunk, digest=UNKNOWN) for chunk in ref.table]
    return BlobRef(ref.digest, ChunkTable(chunks))


def test_what_came_unproven_is_hashed_once_its_digests_are_known(tmp_path):
    store = store_in(tmp_path)
    ref, data = raw_blob(PARTS)
    fill(store, unproven(ref), PARTS[0] + b"x" * 3000 + PARTS[2])

    store.learn(ref)

    assert [store.has(ref.digest, index) for index in range(3)] == [True, False, True]
    assert store.used_bytes == 12_000
    assert store.read_chunk(ref.table[2].digest) == PARTS[2]
    with store.opened(unproven(ref)), pytest.raises(ValueError, match="not what the index says"):
        store.put(unproven(ref), unproven(ref).table[1], b"x" * 3000)
    fill(store, ref, data)
    store.close()
    again = store_in(tmp_path)
    assert all(again.has(ref.digest, index) for index in range(3))


def test_what_was_under_way_when_digests_were_learned_is_hashed_too(tmp_path):
    store = store_in(tmp_path)
    ref, _ = raw_blob(PARTS)
    stored = store.open(unproven(ref))
    verified_by = stored.verify(ref.table[1], b"x" * 3000)

    store.learn(ref)
    stored.write(ref.table[1], b"x" * 3000, verified_by)

    assert not store.has(ref.digest, 1)


def test_opening_with_digests_is_enough_to_learn_them(tmp_path):
    store = store_in(tmp_path)
    ref, _ = raw_blob(PARTS)
    fill(store, unproven(ref), b"x" * 15_000)

    store.open(ref)

    assert not any(store.has(ref.digest, index) for index in range(3))


def test_a_blob_that_is_cut_otherwise_or_said_to_be_another_learns_nothing(tmp_path):
    store = store_in(tmp_path)
    ref, data = raw_blob(PARTS)
    fill(store, ref, data)

    store.learn(BlobRef(ref.digest, raw_blob([b"y" * 15_000])[0].table))
    store.learn(BlobRef(ref.digest, raw_blob([b"y" * len(part) for part in PARTS])[0].table))

    assert all(store.has(ref.digest, index) for index in range(3))


def test_wrong_bytes_are_refused_by_a_store_that_is_full_too(tmp_path):
    store = store_in(tmp_path, capacity=25_000)
    first, data = raw_blob([b"1" * 20_000])
    second, _ = raw_blob([b"2" * 20_000])
    store.open(first)
    store.open(second)
    store.put(first, first.table[0], data)

    with pytest.raises(ValueError, match="not what the index says"):
        store.put(second, second.table[0], data)
