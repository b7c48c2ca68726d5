"""The wire form of an InodeTable: its columns one after the other, little-endian.

    head       u32 each: inodes, folders, hard links, bytes of names, of targets, of attributes
    inodes     kinds u8, modes u16, uids u32, gids u32, mtimes u64, sizes u64, offsets u32 (of 512)
    folders    number of names u32
    hard links place among the names u32, inode u32, which an earlier name has
    names      a zero between two; targets of symbolic links in the order of inodes, likewise
    attributes JSON: {inode: {name: hex}}

A table comes from a registry: whatever it says, what comes out is a tree of sound names within the
layer.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from operator import add
from struct import Struct, pack, unpack_from
from typing import Final

import orjson

from infra.errors import ImageInvalid
from snapshotter.index.entry import MOST_NAME_BYTES, Kind
from snapshotter.index.inode_table import InodeTable
from snapshotter.index.layer_tree import MOST_LINK_BYTES, OPAQUE
from snapshotter.index.tar_scan import MOST_ENTRIES

MOST_INODES: Final = 2 * MOST_ENTRIES  # folders that no entry names are inodes, too
_ALWAYS: Final = 4096  # of a layer however small

_HEAD: Final = Struct("<6I")
_INODE_COLUMNS: Final = "HIIQQI"  # after the kinds
_UNIT_BYTES: Final = 512
_MOST_TIME: Final = 1 << 33
_MOST_XATTR_HEX: Final = 128 << 10
_KINDS: Final = bytes((Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.CHAR, Kind.FIFO))
_IS_NO_FILE: Final = bytes(kind != Kind.FILE for kind in range(256))
_OPAQUE_MODE: Final = 0o10000  # above the permission bits: hides what lower layers have


def packed_inodes(table: InodeTable) -> bytes:
    """The wire form; equal tables have equal bytes. Raises ImageInvalid for too many inodes."""
    if len(table) > MOST_INODES:
        raise ImageInvalid(f"the layer has {len(table)} files", limit=MOST_INODES)
    assert not table.devices, "a scanned tar has none, and whiteouts are 0:0"
    modes = list(table.modes)
    xattrs = {}
    for inode, said in table.xattrs.items():
        own = {_text(name): value.hex() for name, value in said.items() if name != OPAQUE}
        if own:
            xattrs[str(inode)] = own
        if OPAQUE in said:
            modes[inode] |= _OPAQUE_MODE
    offsets = [offset // _UNIT_BYTES for offset in table.offsets]
    names = b"\0".join(table.names)
    targets = b"\0".join(text for _, text in sorted(table.targets.items()))
    attributes = orjson.dumps(xattrs)
    links = _links_of(table.inodes)
    columns = (modes, table.uids, table.gids, table.mtimes, table.sizes, offsets)
    lengths = len(names), len(targets), len(attributes)
    return b"".join(
        (
            _HEAD.pack(len(table), len(table.num_names), len(links), *lengths),
            table.kinds,
            *(
                pack(f"<{len(table)}{unit}", *column)
                for unit, column in zip(_INODE_COLUMNS, columns, strict=True)
            ),
            pack(f"<{len(table.num_names)}I", *table.num_names),
            *(pack("<2I", place, inode) for place, inode in links),
            names,
            targets,
            attributes,
        )
    )


def check_inodes(num_inodes: int, layer_bytes: int) -> None:
    """Raises ImageInvalid for more than there can be in a tar of that size: an entry takes a block
    of it, and brings no more than another one on average, of a folder that no entry names.
    """
    most = min(MOST_INODES, _ALWAYS + 2 * (layer_bytes // _UNIT_BYTES))
    if num_inodes > most:
        raise ImageInvalid(f"the layer's index has {num_inodes} files", limit=most)


def parse_inodes(packed: bytes, *, layer_bytes: int) -> InodeTable:
    """The inverse of `packed_inodes`, for a layer whose tar has that many bytes.

    Raises ImageInvalid, or one of layer_index's MALFORMED.
    """
    num_inodes, num_folders, num_links, *lengths = _HEAD.unpack_from(packed)
    check_inodes(max(num_inodes, num_folders, num_links), layer_bytes)
    if not num_inodes:
        raise ImageInvalid("the layer's index has no root")
    at = _HEAD.size

    def column(unit: str, length: int) -> tuple[int, ...]:
        nonlocal at
        values: tuple[int, ...] = unpack_from(f"<{length}{unit}", packed, at)
        at += length * Struct(f"<{unit}").size
        return values

    kinds = bytes(column("B", num_inodes))
    modes, uids, gids, mtimes, sizes, units = (column(unit, num_inodes) for unit in _INODE_COLUMNS)
    num_names = column("I", num_folders)
    links = column("I", 2 * num_links)
    texts = []
    for length in lengths:
        texts.append(packed[at : at + length])
        at += length
    if at != len(packed):
        raise ImageInvalid("the layer's index has another length than it says")
    opaque = []
    if max(modes) & _OPAQUE_MODE:
        opaque = [inode for inode, mode in enumerate(modes) if mode & _OPAQUE_MODE]
    table = InodeTable(
        kinds=kinds,
        modes=[mode & ~_OPAQUE_MODE for mode in modes] if opaque else modes,
        uids=uids,
        gids=gids,
        mtimes=mtimes,
        sizes=sizes,
        offsets=[unit * _UNIT_BYTES for unit in units],
        names=_split(texts[0], sum(num_names)),
        inodes=_inodes_of(sum(num_names), links, kinds),
        num_names=num_names,
        xattrs=_xattrs(texts[2], opaque, kinds),
    )
    _check_inodes(table, layer_bytes)
    _check_names(table)
    return replace(table, targets=_targets(texts[1], list(table.of_kind(Kind.SYMLINK))))


def _links_of(inodes: Sequence[int]) -> list[tuple[int, int]]:
    """Names of inodes that have one already, by their place."""
    links: list[tuple[int, int]] = []
    for place, inode in enumerate(inodes):
        if inode != place + 1 - len(links):
            links.append((place, inode))
    return links


def _inodes_of(num_names: int, links: Sequence[int], kinds: bytes) -> Sequence[int]:
    """The inverse of `_links_of`; every inode but the root has a name by then."""
    if num_names > MOST_INODES or num_names != len(kinds) - 1 + len(links) // 2:
        raise ImageInvalid("the layer's index has more names than files, or fewer")
    inodes: list[int] = []
    fresh = 1
    for place, inode in zip(links[::2], links[1::2], strict=True):
        num_before = place - len(inodes)
        if num_before < 0 or place >= num_names:
            raise ImageInvalid("the layer's index has a hard link out of order")
        inodes += range(fresh, fresh + num_before)
        fresh += num_before
        if not 0 < inode < fresh or kinds[inode] == Kind.DIRECTORY:
            raise ImageInvalid("the layer's index has a hard link to no file")
        inodes.append(inode)
    return [*inodes, *range(fresh, len(kinds))]


def _split(texts: bytes, num_texts: int) -> list[bytes]:
    """So many texts. They are counted first: a list is larger than what it is made of."""
    if not num_texts and not texts:
        return []
    if texts.count(0) != num_texts - 1:
        raise ImageInvalid(f"the layer's index has other texts than the {num_texts} that it says")
    return texts.split(b"\0")


def _targets(texts: bytes, inodes: Sequence[int]) -> dict[int, bytes]:
    targets = _split(texts, len(inodes))
    if targets and not 0 < min(map(len, targets)) <= max(map(len, targets)) <= MOST_LINK_BYTES:
        raise ImageInvalid("the layer's index has a link to nowhere")
    return dict(zip(inodes, targets, strict=True))


def _xattrs(packed: bytes, opaque: Sequence[int], kinds: bytes) -> dict[int, Mapping[str, bytes]]:
    xattrs: dict[int, Mapping[str, bytes]] = {}
    for inode, said in orjson.loads(packed).items():
        parsed = {}
        for name, value in said.items():
            if name.startswith(("trusted.", "user.overlay.")) or len(value) > _MOST_XATTR_HEX:
                raise ImageInvalid("the layer's index has an unsafe attribute")
            parsed[_untext(name)] = bytes.fromhex(value)
        if not 0 <= int(inode) < len(kinds):
            raise ImageInvalid("the layer's index has attributes of no file")
        xattrs[int(inode)] = parsed
    for inode in opaque:
        if kinds[inode] != Kind.DIRECTORY:
            raise ImageInvalid("the layer's index has a file that hides others")
        xattrs[inode] = {**xattrs.get(inode, {}), OPAQUE: b"y"}
    return xattrs


def _check_inodes(table: InodeTable, layer_bytes: int) -> None:
    if table.kinds[0] != Kind.DIRECTORY or table.kinds.translate(None, _KINDS):
        raise ImageInvalid("the layer's index has a file of an unknown kind")
    if max(table.modes) > 0o7777 or max(table.mtimes) >= _MOST_TIME:
        raise ImageInvalid("the layer's index has a malformed number")
    if max(map(add, table.offsets, table.sizes)) > layer_bytes:
        raise ImageInvalid("the layer's index has a file outside of the layer")
    if any(compress(table.sizes, table.kinds.translate(_IS_NO_FILE))):
        raise ImageInvalid("the layer's index has bytes of what is no file")


def _check_names(table: InodeTable) -> None:
    """Each folder's are different, and none leads out of it."""
    names = table.names
    if b"/" in b"".join(names) or not {b"", b".", b".."}.isdisjoint(names):
        raise ImageInvalid("the layer's index has an unsafe name")
    if max(map(len, names), default=0) > MOST_NAME_BYTES:
        raise ImageInvalid("the layer's index has a name that no file system takes")
    for folder in table.folders():
        own = names[folder.begin : folder.end]
        if own != sorted(set(own)):
            raise ImageInvalid("the layer's index has names that are not sorted")


def _text(name: str) -> str:
    """A name as text that JSON takes whatever its bytes are."""
    return os.fsencode(name).decode("latin-1")


def _untext(text: str) -> str:
    return text if text.isascii() else os.fsdecode(text.encode("latin-1"))
