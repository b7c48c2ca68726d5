"""Writes the EROFS metadata that turns an uncompressed layer into a file system.

The image is the metadata followed by the unmodified stream (a tar): each file's inode points at
the file's bytes in the stream, so blocks are as small as a tar's, 512 bytes (Linux 6.4 and later).
Format: fs/erofs/erofs_fs.h of Linux.

    block 0…     1024 bytes unused, the superblock, zeros to a whole block
    meta_block…  inodes of 64 bytes, each with its extended attributes and short link text
    then         directories' blocks, then long link texts
    base…        the stream, from the next multiple of 4096
"""

import hashlib
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infra.errors import ImageInvalid
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.layer_tree import OPAQUE, Node, layer_tree, walk

BLOCK_BYTES = 512

_PAGE_BYTES = 4096
_SUPER_OFFSET = 1024
_INODE_BYTES = 64
_SLOT_BYTES = 32  # what inode numbers (nid) count
_MOST_XATTR_UNITS = 0xFFFF
_MOST_BLOCKS = 0xFFFF_FFFF
_NO_BLOCK = 0xFFFF_FFFF
_PLAIN, _INLINE = 0, 2  # where an inode's data is: in blocks of its own, or behind it

_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_MAGIC = 0xE0F5E1E2
_FEATURE_MTIME = 2
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBB")
_XATTR = struct.Struct("<BBH")
_XATTR_HEADER = bytes(12)

_FORMAT = {  # of each kind: bits of st_mode, type in directories
    Kind.FILE: (stat.S_IFREG, 1),
    Kind.DIRECTORY: (stat.S_IFDIR, 2),
    Kind.CHAR: (stat.S_IFCHR, 3),
    Kind.BLOCK: (stat.S_IFBLK, 4),
    Kind.FIFO: (stat.S_IFIFO, 5),
    Kind.SYMLINK: (stat.S_IFLNK, 7),
}
# Attributes of other names are left out, as an extraction does where no file system takes them.
_XATTR_WHOLE = {"system.posix_acl_access": 2, "system.posix_acl_default": 3}
_XATTR_PREFIXES = {"user": 1, "trusted": 4, "security": 6}


def erofs_metadata(entries: Iterable[Entry], *, block_bytes: int = BLOCK_BYTES) -> bytes:
    """The metadata of a layer, to be followed by the stream that the entries' offsets refer to.

    The same entries give the same bytes. Raises ImageInvalid for what EROFS cannot express and
    for archives that contradict themselves.
    """
    return _Image(layer_tree(entries), block_bytes).written()


@dataclass(slots=True, eq=False)
class _Inode:
    node: Node
    parent: Node
    number: int
    xattrs: bytes
    inline: bytes = b""  # text of a short link
    position: int = 0  # bytes from the first inode
    block: int = _NO_BLOCK
    size: int = 0
    links: int = 0


class _Image:
    """One image being laid out: inodes first, then what they point at."""

    def __init__(self, root: Node, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._meta_block = _blocks(_SUPER_OFFSET + _SUPERBLOCK.size, block_bytes)
        self._inodes = [
            _Inode(node, parent, number, _packed_xattrs(_xattrs_of(node)))
            for number, (node, parent) in enumerate(walk(root), start=1)
        ]
        self._by_node = {id(inode.node): inode for inode in self._inodes}

    def written(self) -> bytes:
        inode_bytes = self._place_inodes()
        first_block = self._meta_block + inode_bytes // self._block_bytes
        blocks = self._place_blocks(first_block)
        base = _rounded((first_block * self._block_bytes) + len(blocks), _PAGE_BYTES)
        end_block = self._place_files(base // self._block_bytes)
        image = bytearray(base)
        begin = self._meta_block * self._block_bytes
        for inode in self._inodes:
            packed = self._packed(inode)
            at = begin + inode.position
            image[at : at + len(packed)] = packed
        at = first_block * self._block_bytes
        image[at : at + len(blocks)] = blocks
        # overlayfs tells layers apart by it
        identity = hashlib.sha256(image).digest()[:16]
        image[_SUPER_OFFSET : _SUPER_OFFSET + _SUPERBLOCK.size] = self._superblock(
            max(end_block, base // self._block_bytes), identity
        )
        return bytes(image)

    def _place_inodes(self) -> int:
        """Gives each inode its position, and the bytes that all of them take."""
        position = 0
        for inode in self._inodes:
            node = inode.node
            head = _INODE_BYTES + len(inode.xattrs)
            if node.kind is Kind.SYMLINK:
                inode.size = len(node.target)
                if head + inode.size <= self._block_bytes:
                    inode.inline = node.target
            room = -position % self._block_bytes
            if inode.inline and head + len(inode.inline) > room:
                position += room  # inline data may not cross the end of a block
            inode.position = position
            position = _rounded(position + head + len(inode.inline), _INODE_BYTES)
        return _rounded(position, self._block_bytes)

    def _place_blocks(self, first_block: int) -> bytes:
        """The blocks of directories and of long links, each inode told where its own begin."""
        blocks = bytearray()
        for inode in self._inodes:
            match inode.node.kind:
                case Kind.DIRECTORY:
                    content = self._directory(inode)
                case Kind.SYMLINK if not inode.inline:
                    content = inode.node.target
                case _:
                    continue
            inode.size = len(content)
            inode.block = first_block + len(blocks) // self._block_bytes
            blocks += content
            blocks += bytes(-len(content) % self._block_bytes)
        return bytes(blocks)

    def _directory(self, inode: _Inode) -> bytes:
        """A directory's blocks: each has its entries, then their names, in the order of bytes."""
        inode.links += 2
        entries = [(b".", inode), (b"..", self._by_node[id(inode.parent)])]
        for name, node in inode.node.children.items():
            child = self._by_node[id(node)]
            entries.append((name, child))
            if node.kind is Kind.DIRECTORY:
                inode.links += 1
            else:
                child.links += 1
        content = bytearray()
        group: list[tuple[bytes, _Inode]] = []
        used = 0
        for name, child in sorted(entries, key=lambda entry: entry[0]):
            needed = _DIRENT.size + len(name)
            if used + needed > self._block_bytes:
                content += self._directory_block(group).ljust(self._block_bytes, b"\0")
                group, used = [], 0
            group.append((name, child))
            used += needed
        return bytes(content + self._directory_block(group))

    def _directory_block(self, group: list[tuple[bytes, _Inode]]) -> bytes:
        heads, names = bytearray(), bytearray()
        first_name = _DIRENT.size * len(group)
        for name, child in group:
            nid = child.position // _SLOT_BYTES
            heads += _DIRENT.pack(nid, first_name + len(names), _FORMAT[child.node.kind][1], 0)
            names += name
        return bytes(heads + names)

    def _place_files(self, base_block: int) -> int:
        """Points files at the stream; returns the block after the last one that is used."""
        end = base_block
        for inode in self._inodes:
            node = inode.node
            if node.kind is not Kind.FILE or not node.size:
                continue
            if node.offset < 0 or node.size < 0 or node.offset % self._block_bytes:
                raise ImageInvalid(f"a file begins at byte {node.offset} of the layer")
            inode.size = node.size
            inode.block = base_block + node.offset // self._block_bytes
            end = max(end, inode.block + _blocks(node.size, self._block_bytes))
        if end >= _MOST_BLOCKS:
            raise ImageInvalid(f"a layer of {end * self._block_bytes} bytes")
        return end

    def _packed(self, inode: _Inode) -> bytes:
        node = inode.node
        where = inode.block
        if node.kind in (Kind.CHAR, Kind.BLOCK):
            where = _device(*node.device)
        elif node.kind is Kind.FIFO or inode.inline:
            where = 0
        layout = _INLINE if inode.inline else _PLAIN
        try:
            head = _INODE.pack(
                1 | layout << 1,
                _xattr_units(inode.xattrs),
                _FORMAT[node.kind][0] | node.mode,
                0,
                inode.size,
                where,
                inode.number,
                node.uid,
                node.gid,
                node.mtime & 0xFFFF_FFFF_FFFF_FFFF,
                0,
                inode.links,
            )
        except struct.error as error:
            raise ImageInvalid(f"an owner of a file is {node.uid}:{node.gid}") from error
        return head + inode.xattrs + inode.inline

    def _superblock(self, end_block: int, identity: bytes) -> bytes:
        return _SUPERBLOCK.pack(
            _MAGIC,
            0,  # no checksum: whoever serves the metadata has verified its digest
            _FEATURE_MTIME,
            self._block_bytes.bit_length() - 1,
            0,
            self._inodes[0].position // _SLOT_BYTES,
            len(self._inodes),
            0,
            0,
            end_block,
            self._meta_block,
            0,
            identity,
            b"",
            *(0,) * 9,
        )


def _xattrs_of(node: Node) -> Mapping[str, bytes]:
    return node.xattrs | {OPAQUE: b"y"} if node.is_opaque else node.xattrs


def _packed_xattrs(xattrs: Mapping[str, bytes]) -> bytes:
    packed = bytearray()
    for name, value in sorted(xattrs.items()):
        if (number := _XATTR_WHOLE.get(name)) is not None:
            suffix = b""
        elif (number := _XATTR_PREFIXES.get(name.partition(".")[0])) is not None:
            suffix = name.partition(".")[2].encode("utf-8", "surrogateescape")
            if not 0 < len(suffix) <= 255:
                raise ImageInvalid(f"the layer has the extended attribute {name[:64]!r}")
        else:
            continue
        if len(value) > 0xFFFF:
            raise ImageInvalid(f"the extended attribute {name[:64]!r} has {len(value)} bytes")
        packed += _XATTR.pack(len(suffix), number, len(value)) + suffix + value
        packed += bytes(-len(packed) % 4)
    if not packed:
        return b""
    if _xattr_units(_XATTR_HEADER + packed) > _MOST_XATTR_UNITS:
        raise ImageInvalid(f"a file has {len(packed)} bytes of extended attributes")
    return _XATTR_HEADER + bytes(packed)


def _xattr_units(packed: bytes) -> int:
    return (len(packed) - len(_XATTR_HEADER)) // 4 + 1 if packed else 0


def _device(major: int, minor: int) -> int:
    """As the kernel's new_encode_dev: twelve bits of major between the halves of minor."""
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ImageInvalid(f"the layer has the device {major}:{minor}")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _blocks(size: int, block_bytes: int) -> int:
    return -(-size // block_bytes)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
