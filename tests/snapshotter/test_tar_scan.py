import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ImageInvalid
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.tar_scan import TarScanner
from tests.snapshotter.tars import END, file, header, layer_tar, padded, pax


def scan(tar: bytes, part: int = 1 << 30) -> list[Entry]:
    scanner = TarScanner()
    for begin in range(0, len(tar), part):
        scanner.feed(tar[begin : begin + part])
    return scanner.finish()


def paths(tar: bytes) -> list[str]:
    return [entry.path for entry in scan(tar)]


def test_files_are_found_with_everything_the_header_says():
    (entry,) = scan(header(b"bin/x", size=5, mode=b"0104755") + padded(b"hello") + END)

    assert entry == Entry(
        path="bin/x",
        kind=Kind.FILE,
        mode=0o4755,
        uid=0o1750,
        gid=0o144,
        mtime=0o14000000000,
        size=5,
        offset=512,
    )


@pytest.mark.parametrize("part", [1, 7, 511, 512, 513, 4096])
def test_the_size_of_the_parts_does_not_matter(part):
    tar = layer_tar({"a/b/c": b"x" * 3000, "a/" + "long" * 60: b"y", "empty": b""})
    assert scan(tar, part) == scan(tar)


def test_what_the_standard_library_reads_is_what_we_read():
    tar = layer_tar({f"dir{n % 7}/file{n}": bytes([n]) * (n * 37) for n in range(200)})
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        expected = [
            (member.name, member.size, member.offset_data if member.isreg() else 0)
            for member in opened
        ]

    assert [(entry.path, entry.size, entry.offset) for entry in scan(tar)] == expected


def test_long_names_of_both_kinds():
    long = b"d/" * 100 + b"name"
    gnu = header(b"././@LongLink", kind=b"L", size=len(long) + 1) + padded(long + b"\0")

    assert paths(gnu + file(b"short") + END) == [long.decode()]
    assert paths(pax(path=long) + file(b"short") + END) == [long.decode()]
    assert paths(header(b"name", prefix=b"deep/er") + END) == ["deep/er/name"]


def test_links_and_attributes():
    tar = (
        header(b"etc", kind=b"5")
        + header(b"etc/link", kind=b"2", link=b"../../anywhere")
        + file(b"etc/file")
        + header(b"./etc/hard", kind=b"1", link=b"./etc/file")
        + pax(SCHILY__xattr__security__capability=b"\1\0\0\2\0", mtime=b"12.5", uid=b"70000")
        + file(b"etc/ping")
        + header(b"pipe", kind=b"6")
        + END
    )
    folder, link, _, hard, ping, pipe = scan(tar)

    assert (folder.kind, pipe.kind) == (Kind.DIRECTORY, Kind.FIFO)
    assert (link.kind, link.target) == (Kind.SYMLINK, "../../anywhere")
    assert (hard.kind, hard.path, hard.target) == (Kind.HARDLINK, "etc/hard", "etc/file")
    assert ping.xattrs == {"security.capability": b"\1\0\0\2\0"}
    assert (ping.mtime, ping.uid) == (12, 70000)


def test_names_are_brought_below_the_root():
    tar = (
        file(b"/etc/passwd") + file(b"./a//b/./c") + header(b"./", kind=b"5") + file(b"\xff") + END
    )
    assert paths(tar) == ["etc/passwd", "a/b/c", "", "\udcff"]


def test_a_name_that_ends_in_a_slash_is_a_folder():
    assert scan(header(b"old/") + END)[0].kind is Kind.DIRECTORY


def test_device_nodes_are_left_out():
    tar = header(b"dev/sda", kind=b"4") + header(b"dev/mem", kind=b"3") + file(b"x") + END
    assert paths(tar) == ["x"]


def test_orders_to_overlayfs_are_left_out():
    attributes = {
        "SCHILY__xattr__trusted__overlay__redirect": b"/etc/shadow",
        "SCHILY__xattr__user__overlay__opaque": b"y",
        "SCHILY__xattr__user__harmless": b"1",
    }
    (entry,) = scan(pax(**attributes) + file(b"x") + END)
    assert entry.xattrs == {"user.harmless": b"1"}


def test_a_header_for_all_files_is_one_for_all_files():
    tar = pax(b"g", mtime=b"7") + file(b"a") + pax(mtime=b"9") + file(b"b") + file(b"c") + END
    assert [entry.mtime for entry in scan(tar)] == [7, 9, 7]


def damaged(block: bytes, offset: int) -> bytes:
    return block[:offset] + bytes([block[offset] ^ 1]) + block[offset + 1 :]


HOSTILE = {
    "a path above the root": file(b"../etc/passwd"),
    "a path above the root in the middle": file(b"a/../../etc/passwd"),
    "a pax path above the root": pax(path=b"../x") + file(b"x"),
    "a hard link above the root": header(b"x", kind=b"1", link=b"../../etc/shadow"),
    "a hard link with data": header(b"x", kind=b"1", link=b"y", size=512) + bytes(512),
    "a symbolic link with data": header(b"x", kind=b"2", link=b"y", size=512) + bytes(512),
    "a symbolic link to nothing": header(b"x", kind=b"2"),
    "a name with a NUL": pax(path=b"a\0b") + file(b"x"),
    "a name that is too long": pax(path=b"n" * 256) + file(b"x"),
    "a path that is too long": pax(path=b"abc/" * 2000) + file(b"x"),
    "a root that is a file": file(b"."),
    "a sparse file of GNU": header(b"x", kind=b"S", size=1),
    "a sparse file of pax": pax(GNU__sparse__major=b"1", GNU__sparse__realsize=b"9") + file(b"x"),
    "a continued volume": header(b"x", kind=b"M"),
    "an unknown type": header(b"x", kind=b"Z"),
    "a huge pax header": header(b"pax", kind=b"x", size=1 << 33),
    "a huge long name": header(b"long", kind=b"L", size=1 << 30),
    "an empty long name": header(b"long", kind=b"L"),
    "a negative size": header(b"x", raw_size=b"\xff" * 12),
    "a size of 2^88": header(b"x", raw_size=b"\x80" + b"\xff" * 11),
    "a number that is none": header(b"x", raw_size=b"0000000000x"),
    "a wrong checksum": damaged(header(b"x"), 3),
    "a pax size that is none": pax(size=b"-1") + file(b"x"),
    "a pax size that is text": pax(size=b"many") + file(b"x"),
    "a pax record longer than its header": header(kind=b"x", size=9) + padded(b"99 path=x"),
    "a pax record without a value": header(kind=b"x", size=7) + padded(b"7 path\n"),
    "a pax record without a length": header(kind=b"x", size=7) + padded(b"path=x\n"),
    "a user that cannot be": pax(uid=b"99999999999") + file(b"x"),
    "a huge attribute": pax(SCHILY__xattr__user__x=b"x" * 70_000) + file(b"x"),
}  # fmt: skip


@pytest.mark.parametrize("tar", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tars_are_refused(tar):
    with pytest.raises(ImageInvalid):
        scan(tar + END)


def test_a_tar_that_ends_within_a_file_is_refused():
    tar = file(b"x", b"y" * 2000)
    for length in (100, 512, 513, 2000):
        with pytest.raises(ImageInvalid, match="ends within"):
            scan(tar[:length])


def test_a_file_cannot_be_larger_than_the_tar():
    with pytest.raises(ImageInvalid, match="ends within"):
        scan(header(b"bomb", size=1 << 32) + END)


def test_what_follows_the_end_is_not_read():
    assert paths(file(b"a") + END + b"\xff" * 5000) == ["a"]


def test_more_files_than_anybody_has_are_refused(monkeypatch):
    monkeypatch.setattr("snapshotter.index.tar_scan.MOST_ENTRIES", 10)
    with pytest.raises(ImageInvalid, match="too many"):
        scan(b"".join(file(b"f%d" % n) for n in range(11)) + END)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_damage_does_more_than_be_refused(changes):
    tar = bytearray(pax(path=b"p/q", mtime=b"1.5") + file(b"x", b"y" * 700) + file(b"z") + END)
    for offset, value in changes:
        tar[offset % len(tar)] = value
    try:
        entries = scan(bytes(tar))
    except ImageInvalid:
        return
    assert all(".." not in entry.path.split("/") for entry in entries)
    assert all(entry.offset + entry.size <= len(tar) for entry in entries)
