"""The tree that FUSE shows of a layer is the tree that EROFS would show of it."""

import errno
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.fs.fuse_server import answer
from snapshotter.fs.fuse_wire import ROOT, Op, Request
from snapshotter.fs.layer_file import LayerFile
from snapshotter.fs.local_bytes import MemoryBytes
from snapshotter.fs.served_files import ServedFiles
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.erofs_writer import erofs_metadata
from tests.support.erofs import ErofsImage, Found

NAME = "sha256:aa"


class Asking:
    """Asks as the kernel does, and takes the answers apart."""

    def __init__(self, metadata: bytes, stream: bytes = b"") -> None:
        self.files = ServedFiles([LayerFile(NAME, metadata, MemoryBytes(stream, here=False))])

    def ask(self, op: Op, node: int, body: bytes = b"") -> bytes:
        return answer(Request(op, 1, node, 0, body), self.files)

    def lookup(self, node: int, name: bytes) -> tuple[int, tuple[int, ...]]:
        """The node of a name, 0 for none, and its attributes."""
        body = self.ask(Op.LOOKUP, node, name + b"\0")
        return struct.unpack_from("<Q", body)[0], struct.unpack_from("<QQQQQQIIIIIIII", body, 40)

    def names(self, node: int) -> list[tuple[bytes, int]]:
        """Name and type of each entry, a few at a time."""
        found: list[tuple[bytes, int]] = []
        after = 0
        while body := self.ask(Op.READDIR, node, struct.pack("<QQI", 0, after, 900)):
            while body:
                _, after, length, kind = struct.unpack_from("<QQII", body)
                found.append((body[24 : 24 + length], kind))
                body = body[24 + length + -(24 + length) % 8 :]
        return found

    def xattrs(self, node: int) -> dict[str, bytes]:
        listed = self.ask(Op.LISTXATTR, node, struct.pack("<II", 65536, 0))
        return {
            name.decode(): self.ask(Op.GETXATTR, node, struct.pack("<II", 65536, 0) + name + b"\0")
            for name in listed.split(b"\0")[:-1]
        }


def walked(asking: Asking) -> dict[bytes, Found]:
    """What is to be learnt of every path by asking."""
    node, attributes = asking.lookup(ROOT, NAME.encode() + b".tree")
    found = {}
    pending = [(b"", node, attributes)]
    while pending:
        path, node, attributes = pending.pop()
        _, size, _, mtime, _, _, _, _, _, mode, links, uid, gid, device = attributes
        found[path] = Found(
            nid=node & (1 << 28) - 1,
            st_mode=mode,
            uid=uid,
            gid=gid,
            mtime=mtime - (1 << 64) if mtime >> 63 else mtime,
            links=links,
            size=size,
            device=(device >> 8 & 0xFFF, device & 0xFF | device >> 12 & ~0xFF),
            xattrs=tuple(asking.xattrs(node).items()),
            target=asking.ask(Op.READLINK, node) if stat.S_ISLNK(mode) else b"",
            content_at=0,
        )
        if stat.S_ISDIR(mode):
            for name, kind in asking.names(node):
                child, described = asking.lookup(node, name)
                assert kind == described[9] >> 12
                if name not in (b".", b".."):
                    pending.append((path + b"/" + name if path else name, child, described))
    return found


NAMES = st.sampled_from([f"{i}{'n' * (i % 200)}" for i in range(120)])


@given(
    st.dictionaries(NAMES, st.sampled_from(list(Kind)), max_size=40),
    st.sampled_from([512, 4096]),
    st.dictionaries(st.sampled_from(["user.a", "trusted.b"]), st.binary(max_size=700)),
)
def test_a_tree_says_what_the_image_says(
    kinds: dict[str, Kind], block: int, xattrs: dict[str, bytes]
) -> None:
    entries = [Entry("file", Kind.FILE, 0o644, 1, 2, -3, size=5)]
    for name, kind in kinds.items():
        target = "file" if kind is Kind.HARDLINK else name * 9
        entries.append(
            Entry(f"a/{name}", kind, 0o4751, target=target, device=(9, 300), xattrs=xattrs)
        )
        entries.append(Entry(f"{name}/b", Kind.SYMLINK, 0o777, target="t" * 4000))
    metadata = erofs_metadata(entries, block_bytes=block)

    found = walked(Asking(metadata))

    image = dict(ErofsImage(metadata).walk())
    assert {path: inode.nid for path, inode in found.items()} == {
        path: inode.nid for path, inode in image.items()
    }
    for path, inode in image.items():
        assert found[path] == Found(**(vars(inode) | {"content_at": 0}))


def test_names_that_are_not_there_are_known_not_to_be() -> None:
    asking = Asking(erofs_metadata([Entry(f"{i:03}", Kind.FIFO, 0) for i in range(300)]))
    tree, _ = asking.lookup(ROOT, NAME.encode() + b".tree")

    assert [asking.lookup(tree, name)[0] for name in (b"0", b"0001", b"299x", b"~")] == [0] * 4
    assert asking.lookup(tree, b"299")[0] != 0


def test_what_a_tree_cannot_answer_it_refuses() -> None:
    asking = Asking(erofs_metadata([Entry("f", Kind.FILE, 0, xattrs={"user.a": b"12345"})]))
    tree, _ = asking.lookup(ROOT, NAME.encode() + b".tree")
    file, _ = asking.lookup(tree, b"f")
    room = struct.pack("<II", 4, 0)

    def refused(op: Op, node: int, body: bytes = b"") -> int | None:
        with pytest.raises(OSError) as raised:
            asking.ask(op, node, body)
        return raised.value.errno

    assert asking.ask(Op.GETXATTR, file, bytes(8) + b"user.a\0") == struct.pack("<II", 5, 0)
    assert refused(Op.GETXATTR, file, room + b"user.a\0") == errno.ERANGE
    assert refused(Op.GETXATTR, file, room + b"user.b\0") == errno.ENODATA
    assert refused(Op.LOOKUP, file, b"x\0") == errno.ENOTDIR
    assert refused(Op.OPEN, file) == errno.ENOSYS
    assert refused(Op.GETATTR, tree | 0xFFFFFFF) == errno.EIO  # no inode is there
    assert len(asking.ask(Op.STATFS, tree)) == 80  # overlayfs asks for it
    assert asking.files.remove(NAME)
    assert refused(Op.GETATTR, tree) == errno.ESTALE
    noise = Asking(b"no image" * 512)
    with pytest.raises(OSError) as raised:
        noise.lookup(ROOT, NAME.encode() + b".tree")
    assert raised.value.errno == errno.EINVAL
