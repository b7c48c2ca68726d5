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
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, repeat

from infra.errors import ImageInvalid
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.inode_table import InodeTable
from snapshotter.index.layer_tree import layer_tree

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

_MODES: dict[int, int] = {  # bits of st_mode
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SYMLINK: stat.S_IFLNK,
}
_TYPES = bytes.maketrans(  # what directories call each kind
    bytes((Kind.FILE, Kind.DIRECTORY, Kind.CHAR, Kind.BLOCK, Kind.FIFO, Kind.SYMLINK)),
    bytes((1, 2, 3, 4, 5, 7)),
)
# Attributes of other names are left out, as an extraction does where no file system takes them.
_XATTR_WHOLE = {"system.posix_acl_access": 2, "system.posix_acl_default": 3}
_XATTR_PREFIXES = {"user": 1, "trusted": 4, "security": 6}


def erofs_metadata(entries: Iterable[Entry], *, block_bytes: int = BLOCK_BYTES) -> bytes:
    """What `erofs_image` makes of the entries of a layer. Raises ImageInvalid, also for archives
    that contradict themselves.
    """
    return erofs_image(InodeTable.of(layer_tree(entries)), block_bytes=block_bytes)


def erofs_image(table: InodeTable, *, block_bytes: int = BLOCK_BYTES) -> bytes:
    """The metadata of a layer, to be followed by the stream that the table's offsets refer to.

    The same table gives the same bytes. Raises ImageInvalid for what EROFS cannot express.
    """
    return _Image(table, block_bytes).written()


class _Image:
    """One image being laid out: inodes first, then what they point at.

    A pull waits for it, and a layer has tens of thousands of inodes: what all of them need is done
    by columns, and one by one only what few of them have.
    """

    def __init__(self, table: InodeTable, block_bytes: int) -> None:
        self._table = table
        self._block_bytes = block_bytes
        self._meta_block = _blocks(_SUPER_OFFSET + _SUPERBLOCK.size, block_bytes)
        self._xattrs = {inode: _packed_xattrs(said) for inode, said in table.xattrs.items()}
        self._inline: dict[int, bytes] = {}  # texts of short links
        self._sizes = list(table.sizes)
        self._where = [_NO_BLOCK] * len(table)
        self._links = [0] * len(table)
        for inode in table.inodes:
            self._links[inode] += 1

    def written(self) -> bytes:
        self._place_links()
        positions = self._positions()
        inode_bytes = positions[-1]
        first_block = self._meta_block + inode_bytes // self._block_bytes
        blocks, block_of = self._made_blocks(positions)
        base = _rounded((first_block * self._block_bytes) + len(blocks), _PAGE_BYTES)
        end_block = self._place_files(base // self._block_bytes)
        self._place_others({inode: first_block + block for inode, block in block_of.items()})
        image = bytearray(self._meta_block * self._block_bytes)
        image += self._packed(positions)
        image += blocks
        image += bytes(base - len(image))
        # overlayfs tells layers apart by it
        identity = hashlib.sha256(image).digest()[:16]
        image[_SUPER_OFFSET : _SUPER_OFFSET + _SUPERBLOCK.size] = self._superblock(
            max(end_block, base // self._block_bytes), identity
        )
        return bytes(image)

    def _place_links(self) -> None:
        """Texts of links lie behind their inodes, where a block has room for both."""
        for inode, text in self._table.targets.items():
            self._sizes[inode] = len(text)
            if _INODE_BYTES + len(self._xattrs.get(inode, b"")) + len(text) <= self._block_bytes:
                self._inline[inode] = text

    def _positions(self) -> list[int]:
        """Where each inode begins, in bytes from the first one, and last where their blocks end."""
        positions: list[int] = []
        position = 0
        for inode in sorted(self._with_tails()):
            until = position + (inode - len(positions)) * _INODE_BYTES
            positions += range(position, until, _INODE_BYTES)
            position = until
            size = _INODE_BYTES + len(self._tail(inode))
            room = -position % self._block_bytes
            if inode in self._inline and size > room:
                position += room  # inline data may not cross the end of a block
            positions.append(position)
            position = _rounded(position + size, _INODE_BYTES)
        until = position + (len(self._table) - len(positions)) * _INODE_BYTES
        positions += range(position, until, _INODE_BYTES)
        positions.append(_rounded(until, self._block_bytes))
        return positions

    def _with_tails(self) -> set[int]:
        return self._xattrs.keys() | self._inline.keys()

    def _tail(self, inode: int) -> bytes:
        return self._xattrs.get(inode, b"") + self._inline.get(inode, b"")

    def _made_blocks(self, positions: Sequence[int]) -> tuple[bytes, dict[int, int]]:
        """The blocks of directories and of long links, and at which of them each inode's begin."""
        table = self._table
        nids = [position // _SLOT_BYTES for position in positions]
        types = table.kinds.translate(_TYPES)
        blocks = bytearray()
        block_of = {}

        def add(inode: int, content: bytes) -> None:
            block_of[inode] = len(blocks) // self._block_bytes
            self._sizes[inode] = len(content)
            blocks.extend(content)
            blocks.extend(bytes(-len(content) % self._block_bytes))

        for folder in table.folders():
            names = list(table.names[folder.begin : folder.end])
            inodes = list(table.inodes[folder.begin : folder.end])
            for name, inode in ((b".", folder.inode), (b"..", folder.parent)):
                place = bisect_left(names, name)
                names.insert(place, name)
                inodes.insert(place, inode)
                self._links[inode] += 1
            add(folder.inode, self._directory(names, inodes, nids, types))
        for inode, text in table.targets.items():
            if inode not in self._inline:
                add(inode, text)
        return bytes(blocks), block_of

    def _directory(
        self, names: list[bytes], inodes: list[int], nids: list[int], types: bytes
    ) -> bytes:
        """A directory's blocks: each has its entries, then their names, in the order of bytes."""
        blocks = []
        begin = used = 0
        for place, name in enumerate(names):
            used += _DIRENT.size + len(name)
            if used > self._block_bytes:
                block = _directory_block(names[begin:place], inodes[begin:place], nids, types)
                blocks.append(block.ljust(self._block_bytes, b"\0"))
                begin, used = place, _DIRENT.size + len(name)
        blocks.append(_directory_block(names[begin:], inodes[begin:], nids, types))
        return b"".join(blocks)

    def _place_files(self, base_block: int) -> int:
        """Points files at the stream; returns the block after the last one that is used."""
        block_bytes = self._block_bytes
        sizes, offsets = self._table.sizes, self._table.offsets
        if min(sizes) < 0 or min(offsets) < 0 or any(it % block_bytes for it in offsets):
            raise ImageInvalid("a file begins in the middle of a block of the layer")
        ends = (offset + size for offset, size in zip(offsets, sizes, strict=True) if size)
        end_block = base_block + _blocks(max(ends, default=0), block_bytes)
        if end_block >= _MOST_BLOCKS:
            raise ImageInvalid(f"a layer of {end_block * block_bytes} bytes")
        self._where = [
            base_block + offset // block_bytes if size else _NO_BLOCK
            for offset, size in zip(offsets, sizes, strict=True)
        ]
        return end_block

    def _place_others(self, block_of: Mapping[int, int]) -> None:
        for inode, block in block_of.items():
            self._where[inode] = block
        for inode in self._inline:
            self._where[inode] = 0
        for kind in (Kind.CHAR, Kind.BLOCK, Kind.FIFO):
            for inode in self._table.of_kind(kind):
                self._where[inode] = _device(*self._table.devices.get(inode, (0, 0)))

    def _packed(self, positions: Sequence[int]) -> bytes:
        """All inodes, each with what lies behind it."""
        table = self._table
        num_inodes = len(table)
        formats, units = [1 | _PLAIN << 1] * num_inodes, [0] * num_inodes
        for inode in self._inline:
            formats[inode] = 1 | _INLINE << 1
        for inode, packed in self._xattrs.items():
            units[inode] = _xattr_units(packed)
        modes = [_MODES[kind] | mode for kind, mode in zip(table.kinds, table.modes, strict=True)]
        columns: tuple[Iterable[int], ...] = (
            *(formats, units, modes, repeat(0), self._sizes, self._where),
            *(range(1, num_inodes + 1), table.uids, table.gids, table.mtimes),
            *(repeat(0), self._links),
        )
        try:
            inodes = list(map(_INODE.pack, *columns))
        except struct.error as error:
            raise ImageInvalid(f"an inode has a number out of range: {error}") from error
        with_tails = self._with_tails()
        for inode in with_tails:
            inodes[inode] += self._tail(inode)
        for inode in {*with_tails, *(it - 1 for it in with_tails if it), num_inodes - 1}:
            room = positions[inode + 1] - positions[inode]
            inodes[inode] = inodes[inode].ljust(room, b"\0")
        return b"".join(inodes)

    def _superblock(self, end_block: int, identity: bytes) -> bytes:
        return _SUPERBLOCK.pack(
            _MAGIC,
            0,  # no checksum: whoever serves the metadata has verified its digest
            _FEATURE_MTIME,
            self._block_bytes.bit_length() - 1,
            0,
            0,  # the root comes first
            len(self._table),
            0,
            0,
            end_block,
            self._meta_block,
            0,
            identity,
            b"",
            *(0,) * 9,
        )


def _directory_block(names: list[bytes], inodes: list[int], nids: list[int], types: bytes) -> bytes:
    heads = map(
        _DIRENT.pack,
        map(nids.__getitem__, inodes),
        accumulate(map(len, names), initial=_DIRENT.size * len(names)),
        map(types.__getitem__, inodes),
        repeat(0),
    )
    return b"".join(chain(heads, names))


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
