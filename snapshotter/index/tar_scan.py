"""Reads the file table of a tar that nobody vouches for, as its bytes go by.

POSIX.1-2008 (ustar and pax) and the GNU extensions that image builders use; what else there is, is
refused. Data is never looked at, only skipped.
"""

import os
import stat
from collections.abc import Callable
from typing import Final

from infra.errors import ImageInvalid
from snapshotter.index.entry import Entry, Kind, safe_path

BLOCK: Final = 512
MOST_ENTRIES: Final = 500_000
_MOST_EXTENSION_BYTES: Final = 1 << 20  # a pax header or a GNU long name
_MOST_XATTR_BYTES: Final = 64 << 10
_MOST_ID: Final = (1 << 32) - 2
_MOST_TIME: Final = (1 << 33) - 1

_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_XATTR: Final = "SCHILY.xattr."
# overlayfs would take orders from these: opaque folders, redirects, data in another layer
_FORBIDDEN_XATTRS: Final = ("trusted.", "user.overlay.")


class TarScanner:
    """Fed with a tar from its first byte to its last, in parts of any size.

    Device nodes are left out, as an extraction without root's rights leaves them out: a container
    has a /dev of its own.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._position = 0
        self._collected = bytearray()
        self._wanted = BLOCK
        self._then: Callable[[bytes], None] = self._header
        self._skip = 0
        self._is_over = False
        self._globals: dict[str, bytes] = {}
        self._extended: dict[str, bytes] = {}

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes; raises ImageInvalid as soon as something is wrong."""
        view = memoryview(data)
        while len(view):
            if self._is_over:
                self._position += len(view)
                return
            if self._skip:
                step = min(self._skip, len(view))
                self._skip -= step
            else:
                step = min(self._wanted - len(self._collected), len(view))
                self._collected += view[:step]
            self._position += step
            view = view[step:]
            if not self._skip and len(self._collected) == self._wanted:
                collected = bytes(self._collected)
                self._collected.clear()
                self._then(collected)

    def finish(self) -> list[Entry]:
        """The entries in the order of the tar. Raises ImageInvalid if it ends in the middle."""
        if not self._is_over and (self._skip or self._collected or self._then != self._header):
            raise ImageInvalid("the tar ends within a file")
        return self._entries

    def _header(self, block: bytes) -> None:
        if block.count(0) == BLOCK:
            self._is_over = True
            return
        _check_sum(block)
        kind, size = block[156:157], _number(block[124:136])
        if size < 0:
            raise ImageInvalid("the tar has a file of negative size")
        match kind:
            case b"x" | b"g" | b"L" | b"K":
                self._collect_extension(kind, size)
            case _ if kind in _KINDS:
                self._add(block, _KINDS[kind], size)
            case _:
                raise ImageInvalid(f"the tar has an entry of type {kind!r}")

    def _collect_extension(self, kind: bytes, size: int) -> None:
        if not 0 < size <= _MOST_EXTENSION_BYTES:
            raise ImageInvalid(f"the tar has a header of {size} bytes")

        def extend(data: bytes) -> None:
            content = data[:size]
            match kind:
                case b"x":
                    self._extended |= _pax_records(content)
                case b"g":
                    self._globals |= _pax_records(content)
                case b"L":
                    self._extended["path"] = content.rstrip(b"\0")
                case _:
                    self._extended["linkpath"] = content.rstrip(b"\0")
            self._wanted, self._then = BLOCK, self._header

        self._wanted, self._then = _padded(size), extend

    def _add(self, block: bytes, kind: Kind, size: int) -> None:
        said = self._globals | self._extended
        self._extended = {}
        if any(name.startswith("GNU.sparse") for name in said):
            raise ImageInvalid("the tar has a sparse file")
        name = said.get("path", _ustar_name(block))
        if kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.DIRECTORY  # how tars before 1988 say it
        size = _decimal(said["size"]) if "size" in said else size
        if kind is not Kind.FILE:
            # a folder's size is a hint; data behind anything else is a way to hide a header
            if size and kind is not Kind.DIRECTORY:
                raise ImageInvalid(f"the tar has a {kind.name.lower()} with data")
            size = 0
        if kind not in {Kind.CHAR, Kind.BLOCK}:
            self._entries.append(self._entry(block, kind, size, name, said))
        if len(self._entries) > MOST_ENTRIES:
            raise ImageInvalid("the tar has too many files", limit=MOST_ENTRIES)
        self._skip = _padded(size)

    def _entry(
        self, block: bytes, kind: Kind, size: int, name: bytes, said: dict[str, bytes]
    ) -> Entry:
        link = os.fsdecode(said.get("linkpath", block[157:257].split(b"\0")[0]))
        uid = _decimal(said["uid"]) if "uid" in said else _number(block[108:116])
        gid = _decimal(said["gid"]) if "gid" in said else _number(block[116:124])
        mtime = _seconds(said["mtime"]) if "mtime" in said else _number(block[136:148])
        if not 0 <= uid <= _MOST_ID or not 0 <= gid <= _MOST_ID:
            raise ImageInvalid(f"the tar has a file of user {uid} and group {gid}")
        path = safe_path(os.fsdecode(name))
        if not path and kind is not Kind.DIRECTORY:
            raise ImageInvalid("the tar has a root that is no folder")
        target = ""
        if kind is Kind.HARDLINK:
            target = safe_path(link)
        elif kind is Kind.SYMLINK:
            if not 0 < len(os.fsencode(link)) < 4096:
                raise ImageInvalid("the tar has a symbolic link without a target, or a huge one")
            target = link
        return Entry(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(_number(block[100:108])),
            uid=uid,
            gid=gid,
            mtime=min(max(mtime, 0), _MOST_TIME),
            size=size if kind is Kind.FILE else 0,
            offset=self._position if kind is Kind.FILE else 0,
            target=target,
            xattrs=_xattrs(said),
        )


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_sum(block: bytes) -> None:
    said = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    if said != total:
        raise ImageInvalid("the tar has a header with a wrong checksum")


def _number(field: bytes) -> int:
    """Octal text or, as GNU writes what does not fit, a big-endian number with the top bit set."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field) & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    text = field.split(b"\0")[0].strip()
    if not text:
        return 0
    if not text.isdigit() or max(text) > ord("7"):
        raise ImageInvalid("the tar has a header with a malformed number")
    return int(text, 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise ImageInvalid("the tar has a malformed pax number")
    return int(text)


def _seconds(text: bytes) -> int:
    whole = text.partition(b".")[0]
    is_negative = whole.startswith(b"-")
    return -_decimal(whole[1:]) if is_negative else _decimal(whole)


def _ustar_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(content: bytes) -> dict[str, bytes]:
    """`length key=value\\n`, again and again; the values are kept as they are."""
    records = {}
    position = 0
    while position < len(content):
        digits, space, _ = content[position : position + 9].partition(b" ")
        if not space or not digits.isdigit():
            raise ImageInvalid("the tar has a malformed pax header")
        end = position + int(digits)
        key, equals, value = content[position + len(digits) + 1 : end - 1].partition(b"=")
        if end > len(content) or content[end - 1 : end] != b"\n" or not equals or not key:
            raise ImageInvalid("the tar has a malformed pax header")
        if b"\0" in value and not key.startswith(_XATTR.encode()):
            raise ImageInvalid("the tar has a name with a NUL in it")
        records[os.fsdecode(key)] = value
        position = end
    return records


def _xattrs(said: dict[str, bytes]) -> dict[str, bytes]:
    xattrs = {}
    for key, value in said.items():
        name = key.removeprefix(_XATTR)
        if name == key or name.startswith(_FORBIDDEN_XATTRS):
            continue
        if not 0 < len(os.fsencode(name)) <= 255 or len(value) > _MOST_XATTR_BYTES:
            raise ImageInvalid("the tar has an extended attribute that is too large")
        xattrs[name] = value
    return xattrs
