"""Reads the tree of a served layer out of its own EROFS metadata, for kernels that cannot."""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from snapshotter.fs.ports import ServedFile

_SUPER_OFFSET = 1024
_SUPER = struct.Struct("<I8xBxH24xI")  # magic, block size bits, root, meta_block
_MAGIC = 0xE0F5E1E2
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_SLOT_BYTES = 32
_XATTR_HEADER_BYTES = 12
_XATTR = struct.Struct("<BBH")
_DIRENT = struct.Struct("<QHBB")
_TYPES = {1: 8, 2: 4, 3: 2, 4: 6, 5: 1, 6: 12, 7: 10}  # in directories, to those of st_mode
_INLINE = 2
_XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


@dataclass(frozen=True, slots=True)
class Inode:
    """What an inode says; `begin` is the first byte of its data in the image."""

    number: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime: int
    links: int
    device: int  # as the kernel encodes it, of devices
    begin: int
    xattrs_at: int
    xattr_bytes: int


class ErofsTree:
    """Inodes, names and attributes of one layer, as `erofs_metadata` wrote them.

    Everything raises OSError as a file system does; EINVAL where the file is no image.
    """

    def __init__(self, file: ServedFile) -> None:
        self._file = file
        magic, bits, root, meta_block = _SUPER.unpack(self._bytes(_SUPER_OFFSET, _SUPER.size))
        if magic != _MAGIC or not 9 <= bits <= 12:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._block_bytes: int = 1 << bits
        self._inodes_at: int = meta_block << bits
        self.root: int = root

    def inode(self, number: int) -> Inode:
        at = self._inodes_at + number * _SLOT_BYTES
        fields = _INODE.unpack(self._bytes(at, _INODE.size))
        form, units, mode, _, size, where, _, uid, gid, mtime, _, links = fields
        xattrs_at = at + _INODE.size
        xattr_bytes = _XATTR_HEADER_BYTES + 4 * (units - 1) if units else 0
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        is_inline = form >> 1 & 7 == _INLINE
        begin = xattrs_at + xattr_bytes if is_inline else where * self._block_bytes
        return Inode(
            number=number,
            mode=mode,
            size=size,
            uid=uid,
            gid=gid,
            mtime=mtime,
            links=links,
            device=where if is_device else 0,
            begin=begin,
            xattrs_at=xattrs_at,
            xattr_bytes=xattr_bytes,
        )

    def entries(self, folder: Inode) -> Iterator[tuple[bytes, int, int]]:
        """Name, inode number and type (as in st_mode >> 12) of each entry, in stored order."""
        for block in range(self._num_blocks(folder)):
            yield from self._block_entries(folder, block)

    def child(self, folder: Inode, name: bytes) -> int | None:
        """The inode number of a name; blocks are sorted, so few are looked at."""
        low, high = 0, self._num_blocks(folder) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if next(self._block_entries(folder, middle))[0] <= name:
                low = middle
            else:
                high = middle - 1
        for entry, number, _ in self._block_entries(folder, low):
            if entry == name:
                return number
        return None

    def link(self, inode: Inode) -> bytes:
        """The text of a symbolic link."""
        return self._bytes(inode.begin, inode.size)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        packed = self._bytes(inode.xattrs_at, inode.xattr_bytes)
        found = {}
        at = _XATTR_HEADER_BYTES
        while at < len(packed):
            name_bytes, prefix, value_bytes = _XATTR.unpack_from(packed, at)
            value_at = at + _XATTR.size + name_bytes
            end = value_at + value_bytes
            found[_XATTR_PREFIXES[prefix] + packed[at + _XATTR.size : value_at]] = packed[
                value_at:end
            ]
            at = end + -end % 4
        return found

    def _num_blocks(self, folder: Inode) -> int:
        if not stat.S_ISDIR(folder.mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return -(-folder.size // self._block_bytes)

    def _block_entries(self, folder: Inode, block: int) -> Iterator[tuple[bytes, int, int]]:
        offset = block * self._block_bytes
        length = min(self._block_bytes, folder.size - offset)
        data = self._bytes(folder.begin + offset, length)
        count = _DIRENT.unpack_from(data)[1] // _DIRENT.size
        heads = list(_DIRENT.iter_unpack(data[: count * _DIRENT.size]))
        ends = [name_at for _, name_at, _, _ in heads[1:]] + [length]
        for (number, name_at, kind, _), end in zip(heads, ends, strict=True):
            yield data[name_at:end].rstrip(b"\0"), number, _TYPES[kind]

    def _bytes(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        data = self._file.cached(offset, length) if offset + length <= self._file.size else None
        if data is None or len(data) != length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data
