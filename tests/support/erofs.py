"""Reads an EROFS image as the format says, with nothing of our writer's."""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
}
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}


@dataclass(frozen=True)
class Found:
    """What `lstat`, `readlink`, `listxattr` and `read` would say of a path."""

    nid: int
    st_mode: int
    uid: int
    gid: int
    mtime: int
    links: int
    size: int
    device: tuple[int, int]
    xattrs: tuple[tuple[str, bytes], ...]
    target: bytes
    content_at: int  # of a file: its first byte in the image


class ErofsImage:
    """A parsed image; asserts what the format demands and a lenient kernel would forgive."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        magic, _, _, bits, _, root, self.inodes = struct.unpack_from("<IIIBBHQ", image, 1024)
        assert magic == 0xE0F5E1E2
        self.block = 1 << bits
        self.blocks, self.meta_block = struct.unpack_from("<II", image, 1024 + 36)
        self.root = root

    def walk(self) -> Iterator[tuple[bytes, Found]]:
        """Every path with its inode, the root as b""."""
        yield b"", self.inode(self.root)
        folders = [(b"", self.root, self.root)]
        while folders:
            path, nid, parent = folders.pop()
            entries = self.entries(nid)
            names = [name for name, _, _ in entries]
            assert names == sorted(set(names))
            assert {name: child for name, child, _ in entries}[b"."] == nid
            assert {name: child for name, child, _ in entries}[b".."] == parent
            for name, child, kind in entries:
                if name in (b".", b".."):
                    continue
                found = self.inode(child)
                assert kind == _TYPES[stat.S_IFMT(found.st_mode)]
                below = path + b"/" + name if path else name
                yield below, found
                if stat.S_ISDIR(found.st_mode):
                    folders.append((below, child, nid))

    def entries(self, nid: int) -> list[tuple[bytes, int, int]]:
        """Names of a directory in stored order, with inode number and type."""
        found = self.inode(nid)
        entries = []
        for begin in range(0, found.size, self.block):
            data = self.image[found.content_at + begin :][: min(self.block, found.size - begin)]
            count = struct.unpack_from("<QH", data)[1] // 12
            heads = [struct.unpack_from("<QHBB", data, 12 * i) for i in range(count)]
            ends = [head[1] for head in heads[1:]] + [len(data)]
            for (child, at, kind, _), end in zip(heads, ends, strict=True):
                entries.append((data[at:end].rstrip(b"\0"), child, kind))
        return entries

    def inode(self, nid: int) -> Found:
        at = self.meta_block * self.block + nid * 32
        fields = struct.unpack_from("<HHHHQIIIIQII", self.image, at)
        form, units, mode, _, size, where, _, uid, gid, mtime, _, links = fields
        assert form & 1 and at // self.block == (at + 63) // self.block
        layout = form >> 1 & 7
        xattr_bytes = 12 + 4 * (units - 1) if units else 0
        content_at = where * self.block
        if layout == 2:
            content_at = at + 64 + xattr_bytes
            assert content_at // self.block == (content_at + size - 1) // self.block
        device = (0, 0)
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = (where >> 8 & 0xFFF, where & 0xFF | where >> 12 & ~0xFF)
        target = self.image[content_at : content_at + size] if stat.S_ISLNK(mode) else b""
        xattrs = tuple(self._xattrs(at + 64, xattr_bytes))
        signed = mtime - (1 << 64) if mtime >> 63 else mtime
        return Found(nid, mode, uid, gid, signed, links, size, device, xattrs, target, content_at)

    def _xattrs(self, at: int, length: int) -> Iterator[tuple[str, bytes]]:
        end = at + length
        at += 12
        while at < end:
            name_bytes, prefix, value_bytes = struct.unpack_from("<BBH", self.image, at)
            name = self.image[at + 4 : at + 4 + name_bytes].decode("utf-8", "surrogateescape")
            value_at = at + 4 + name_bytes
            yield _PREFIXES[prefix] + name, self.image[value_at : value_at + value_bytes]
            at += -(-(4 + name_bytes + value_bytes) // 4) * 4
