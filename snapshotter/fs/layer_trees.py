"""Answers for a layer's files one by one: what its image would say if the kernel mounted it.

The portable way, several times slower than EROFS: beside the file `NAME` the flat folder has a
folder `NAME.tree`, which no listing shows.

    node ids: bit 62, then 34 bits of the layer's name, then 28 of the inode's number
"""

import errno
import os
from collections.abc import Callable
from hashlib import sha256

from snapshotter.fs import fuse_wire
from snapshotter.fs.erofs_tree import ErofsTree, Inode
from snapshotter.fs.fuse_wire import Op, Request
from snapshotter.fs.ports import ServedFile

SUFFIX = ".tree"

_MARK = 1 << 62
_INODE_BITS = 28
_KEY_BITS = 34


def tree_key(name: str) -> int:
    """The layer's part of its nodes' ids: the same in every process."""
    return int.from_bytes(sha256(name.encode()).digest()[:8]) >> (64 - _KEY_BITS)


def key_of(node: int) -> int | None:
    """The layer's part of a node's id; None for nodes that are in no tree."""
    return node >> _INODE_BITS & (1 << _KEY_BITS) - 1 if node & _MARK else None


class LayerTree:
    """One layer's tree."""

    def __init__(self, file: ServedFile) -> None:
        self.file = file
        self._tree = ErofsTree(file)
        self._base = _MARK | tree_key(file.name) << _INODE_BITS

    def found(self) -> bytes:
        """The answer to the LOOKUP of the tree itself."""
        return self._entry(self._tree.root)

    def range_of(self, node: int) -> tuple[int, int]:
        """Where in the served file a regular file begins, and its size."""
        inode = self._inode(node)
        return inode.begin, inode.size

    def answer(self, request: Request) -> bytes:
        """The body that answers a request about one of the tree's nodes. Raises OSError."""
        inode = self._inode(request.node)
        answers: dict[int, Callable[[Request, Inode], bytes]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: lambda _, inode: fuse_wire.attributes_body(self._attributes(inode)),
            Op.READDIR: self._listing,
            Op.READLINK: lambda _, inode: self._tree.link(inode),
            Op.GETXATTR: self._xattr,
            Op.LISTXATTR: self._xattr_names,
        }
        if request.op not in answers:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return answers[request.op](request, inode)

    def _lookup(self, request: Request, folder: Inode) -> bytes:
        number = self._tree.child(folder, request.body.rstrip(b"\0"))
        return fuse_wire.no_entry_body() if number is None else self._entry(number)

    def _listing(self, request: Request, folder: Inode) -> bytes:
        after, size = fuse_wire.read_range(request)
        entries = (
            (self._base | number, place, name, kind)
            for place, (name, number, kind) in enumerate(self._tree.entries(folder), start=1)
            if place > after
        )
        return fuse_wire.listing(entries, size)

    def _xattr(self, request: Request, inode: Inode) -> bytes:
        room, name = fuse_wire.xattr_wanted(request)
        value = self._tree.xattrs(inode).get(name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return fuse_wire.xattr_body(value, room)

    def _xattr_names(self, request: Request, inode: Inode) -> bytes:
        room, _ = fuse_wire.xattr_wanted(request)
        names = b"".join(name + b"\0" for name in self._tree.xattrs(inode))
        return fuse_wire.xattr_body(names, room)

    def _entry(self, number: int) -> bytes:
        inode = self._tree.inode(number)
        return fuse_wire.entry_body(self._base | number, self._attributes(inode))

    def _attributes(self, inode: Inode) -> bytes:
        return fuse_wire.attributes(
            self._base | inode.number,
            inode.mode,
            inode.size,
            links=inode.links,
            uid=inode.uid,
            gid=inode.gid,
            mtime=inode.mtime,
            device=inode.device,
        )

    def _inode(self, node: int) -> Inode:
        return self._tree.inode(node & (1 << _INODE_BITS) - 1)
