"""What the EROFS writer writes is what an extraction of the layer would make."""

import shutil
import stat
import struct
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ImageInvalid
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.erofs_writer import erofs_metadata
from tests.snapshotter.layer_entries import layer_entries
from tests.support.erofs import ErofsImage, Found
from tests.support.processes import require

_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


@dataclass(eq=False)
class Extracted:
    """An inode as a plain extraction makes it: the oracle, which knows no tree."""

    entry: Entry
    extra: dict[str, bytes] = field(default_factory=dict)


def extraction(entries: list[Entry]) -> dict[str, Extracted] | None:
    """Paths and their inodes after the entries were applied in order; None: it cannot be done."""
    found = {"": Extracted(Entry("", Kind.DIRECTORY, 0o755))}
    whiteouts, opaque = [], []
    for entry in entries:
        parts = entry.path.split("/") if entry.path else []
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            there = found.setdefault(parent, Extracted(Entry(parent, Kind.DIRECTORY, 0o755)))
            if there.entry.kind is not Kind.DIRECTORY:
                return None
        folder, name = "/".join(parts[:-1]), parts[-1] if parts else ""
        if name == ".wh..wh..opq":
            opaque.append(found[folder])
        elif name.startswith(".wh."):
            whiteouts.append((found[folder], folder, name.removeprefix(".wh.")))
        else:
            made = Extracted(entry)
            if entry.kind is Kind.HARDLINK:
                target = found.get(entry.target)
                if target is None or target.entry.kind is Kind.DIRECTORY:
                    return None
                made = target
            there = found.get(entry.path)
            if there is not None and {there.entry.kind, made.entry.kind} == {Kind.DIRECTORY}:
                there.entry = entry
            elif not entry.path:
                return None
            else:
                for path in [path for path in found if f"{path}/".startswith(f"{entry.path}/")]:
                    del found[path]
                found[entry.path] = made
    for there in opaque:
        there.extra["trusted.overlay.opaque"] = b"y"
    for parent_inode, folder, hidden in whiteouts:
        if found.get(folder) is not parent_inode:
            continue  # the folder was replaced by something else
        path = f"{folder}/{hidden}" if folder else hidden
        there = found.setdefault(path, Extracted(Entry(path, Kind.CHAR, 0)))
        if there.entry.kind is Kind.DIRECTORY:
            there.extra["trusted.overlay.opaque"] = b"y"
    return found


def expected(found: dict[str, Extracted], base: int) -> dict[bytes, Found]:
    """The oracle's inodes in the words of an EROFS image whose stream begins at `base`."""
    links: dict[int, int] = {}
    for path, inode in found.items():
        links[id(inode)] = links.get(id(inode), 0) + 1
        if path and inode.entry.kind is Kind.DIRECTORY:
            parent = id(found[path.rpartition("/")[0]])
            links[parent] = links.get(parent, 0) + 1
    made = {}
    for path, inode in found.items():
        entry = inode.entry
        is_folder = entry.kind is Kind.DIRECTORY
        target = entry.target.encode("utf-8", "surrogateescape") * (entry.kind is Kind.SYMLINK)
        size = entry.size if entry.kind is Kind.FILE else len(target)
        made[path.encode("utf-8", "surrogateescape")] = Found(
            nid=0,
            st_mode=_BITS[entry.kind] | entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime=entry.mtime,
            links=links[id(inode)] + is_folder,  # its own name for itself, `.`
            size=size,
            device=entry.device if entry.kind in (Kind.CHAR, Kind.BLOCK) else (0, 0),
            xattrs=tuple(sorted((dict(entry.xattrs) | inode.extra).items())),
            target=target,
            content_at=base + entry.offset if entry.kind is Kind.FILE and size else 0,
        )
    return made


def comparable(found: Found) -> Found:
    """Without what the layout decides: inode numbers, sizes of directories, unused addresses."""
    is_file = stat.S_ISREG(found.st_mode) and found.size
    return replace(
        found,
        nid=0,
        size=0 if stat.S_ISDIR(found.st_mode) else found.size,
        content_at=found.content_at if is_file else 0,
        xattrs=tuple(sorted(found.xattrs)),
    )


@given(layer_entries(), st.sampled_from([512, 4096]))
def test_an_image_says_what_an_extraction_would_make(entries: list[Entry], block: int) -> None:
    """Also for archives whose entries come without parents, twice, or contradict each other."""
    entries = [replace(entry, offset=entry.offset // block * block) for entry in entries]
    extracted = extraction(entries)

    if extracted is None:
        with pytest.raises(ImageInvalid):
            erofs_metadata(entries, block_bytes=block)
        return
    metadata = erofs_metadata(entries, block_bytes=block)

    image = ErofsImage(metadata)
    walked = list(image.walk())
    assert len(metadata) % 4096 == 0
    assert image.block == block
    assert {path: comparable(found) for path, found in walked} == expected(extracted, len(metadata))
    assert len({found.nid for _, found in walked}) == image.inodes
    assert erofs_metadata(entries, block_bytes=block) == metadata


def test_names_of_a_hard_link_share_one_inode() -> None:
    entries = [Entry("a", Kind.FILE, 0o644, size=9), Entry("b", Kind.HARDLINK, 0, target="a")]

    walked = dict(ErofsImage(erofs_metadata(entries)).walk())

    assert walked[b"a"] == walked[b"b"]
    assert walked[b"a"].links == 2


def test_a_whiteout_hides_what_is_beneath_the_layer_and_nothing_of_the_layer_itself() -> None:
    entries = [
        Entry("gone", Kind.DIRECTORY, 0o755),
        Entry("gone/.wh.old", Kind.FILE, 0),
        Entry("kept", Kind.DIRECTORY, 0o700),
        Entry("kept/new", Kind.FILE, 0o644),
        Entry(".wh.kept", Kind.FILE, 0),
        Entry("d/.wh..wh..opq", Kind.FILE, 0),
        Entry(".wh..wh.plnk", Kind.DIRECTORY, 0),
    ]

    walked = dict(ErofsImage(erofs_metadata(entries)).walk())

    assert sorted(walked) == [b"", b"d", b"gone", b"gone/old", b"kept", b"kept/new"]
    assert (walked[b"gone/old"].st_mode, walked[b"gone/old"].device) == (stat.S_IFCHR, (0, 0))
    opaque = (("trusted.overlay.opaque", b"y"),)
    assert [walked[path].xattrs for path in (b"gone", b"kept", b"d")] == [(), opaque, opaque]


def test_a_layer_cannot_set_the_attributes_that_overlayfs_believes() -> None:
    xattrs = {"trusted.overlay.redirect": b"/etc", "trusted.other": b"1", "btrfs.x": b"1"}

    walked = dict(ErofsImage(erofs_metadata([Entry("a", Kind.FILE, 0, xattrs=xattrs)])).walk())

    assert walked[b"a"].xattrs == (("trusted.other", b"1"),)


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("a/../b", Kind.FILE, 0)],
        [Entry("/a", Kind.FILE, 0)],
        [Entry("a", Kind.FILE, 0), Entry("/b", Kind.FILE, 0)],
        [Entry("a/b", Kind.FILE, 0), Entry("a/", Kind.FILE, 0)],
        [Entry("a/b", Kind.FILE, 0), Entry("a", Kind.FILE, 0), Entry("a/c", Kind.FILE, 0)],
        [Entry("a\0b", Kind.FILE, 0)],
        [Entry("n" * 256, Kind.FILE, 0)],
        [Entry("l", Kind.SYMLINK, 0o777, target="/etc"), Entry("l/passwd", Kind.FILE, 0)],
        [Entry("", Kind.FILE, 0)],
        [Entry("l", Kind.SYMLINK, 0, target="")],
        [Entry("l", Kind.SYMLINK, 0, target="x" * 4096)],
        [Entry("h", Kind.HARDLINK, 0, target="missing")],
        [Entry("h", Kind.HARDLINK, 0, target="../missing")],
        [Entry("d", Kind.DIRECTORY, 0), Entry("h", Kind.HARDLINK, 0, target="d")],
        [Entry(".wh..", Kind.FILE, 0)],
        [Entry(".wh.", Kind.FILE, 0)],
        [Entry("f", Kind.FILE, 0, size=1, offset=100)],
        [Entry("f", Kind.FILE, 0, size=1, offset=-512)],
        [Entry("f", Kind.FILE, 0, size=-1)],
        [Entry("f", Kind.FILE, 0, size=2**50)],
        [Entry("f", Kind.FILE, 0, uid=2**32)],
        [Entry("c", Kind.CHAR, 0, device=(4096, 0))],
        [Entry("f", Kind.FILE, 0, xattrs={"user.x": bytes(2**16)})],
        [Entry("f", Kind.FILE, 0, xattrs={f"user.{i}": bytes(2**15) for i in range(9)})],
        [Entry("f", Kind.FILE, 0, xattrs={"user.": b""})],
    ],
)
def test_what_no_file_system_may_hold_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(ImageInvalid):
        erofs_metadata(entries)


@pytest.mark.real
def test_an_image_passes_the_check_of_erofs_utils(tmp_path: Path) -> None:
    """With blocks of 4096 bytes: Debian 12's erofs-utils know no smaller ones, kernels do."""
    require(shutil.which("fsck.erofs"), "fsck.erofs")
    entries = [
        Entry("big", Kind.DIRECTORY, 0o755),
        *(Entry(f"big/{i:04}{'n' * 200}", Kind.FILE, 0o644, size=i % 3) for i in range(3000)),
        Entry("f", Kind.FILE, 0o4755, size=5, offset=4096, xattrs={"user.x": b"v" * 5000}),
        Entry("h", Kind.HARDLINK, 0, target="f"),
        Entry("s", Kind.SYMLINK, 0o777, target="short"),
        Entry("l", Kind.SYMLINK, 0o777, target="t" * 4000),
        Entry("c", Kind.CHAR, 0o600, device=(300, 70000)),
        Entry("p", Kind.FIFO, 0o600),
        Entry("d/e/f", Kind.DIRECTORY, 0o1777),
    ]
    metadata = erofs_metadata(entries, block_bytes=4096)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(metadata)
        file.truncate(len(metadata) + 2 * 4096)

    done = subprocess.run(["fsck.erofs", image], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert len(list(ErofsImage(metadata).walk())) == 3011
    assert struct.unpack_from("<I", metadata, 1024 + 36)[0] * 4096 == image.stat().st_size
