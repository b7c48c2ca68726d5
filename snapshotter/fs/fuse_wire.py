"""The words of the FUSE protocol that a read-only folder needs (include/uapi/linux/fuse.h, 7.x)."""

import errno
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

ROOT = 1  # the node id of the folder itself
MOST_READ_BYTES = 1 << 20
MOST_NAME_BYTES = 255
# A request of ours is a header and a name; the kernel insists on room for the smallest write.
REQUEST_BYTES = 16384

_FOREVER_S = 1 << 40
_MAX_WRITE = 4096
_PAGE_BYTES = 4096
_MOST_BACKGROUND = 64  # asynchronous requests the kernel keeps outstanding at once
_MINOR = 40  # what this module speaks
_OLDEST_MINOR = 28  # Linux 4.20: max_pages
_RESEND = 7  # a notification: ask again everything that was asked and not answered
_INVALIDATE_INODE = 2
_INVALIDATE_ENTRY = 3

_HEADER_IN = struct.Struct("<IIQQIIII")  # length opcode unique node uid gid pid padding
_HEADER_OUT = struct.Struct("<IiQ")  # length error unique
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ATTR_OUT = struct.Struct("<QII")
_ENTRY_OUT = struct.Struct("<QQQQII")
_READ_IN = struct.Struct("<QQI")
_DIRENT = struct.Struct("<QQII")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_NOTIFY_ENTRY = struct.Struct("<QII")


class Op(IntEnum):
    """Requests that are answered; every other one gets ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    GETXATTR = 22
    LISTXATTR = 23
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


class Feature(IntFlag):
    """What both sides can do, agreed on in INIT."""

    ASYNC_READ = 1 << 0
    ASYNC_DIO = 1 << 15  # direct reads of several requests are asked for at once
    NO_OPEN = 1 << 17  # OPEN is refused once and never asked again: no handle to lose
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    NO_OPENDIR = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25  # pages stay until we say otherwise
    INIT_EXT = 1 << 30
    RESEND = 1 << 39


_WANTED = Feature(sum(Feature))
# A server that lacks one of these would have state that dies with its process.
_NEEDED = Feature.NO_OPEN | Feature.NO_OPENDIR | Feature.MAX_PAGES


Buffers = Sequence[bytes]  # of one writev


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the kernel; `unique` names it in the reply."""

    op: int
    unique: int
    node: int
    thread_id: int  # of the program that waits
    body: bytes


def parsed(buffer: bytearray, length: int) -> Request:
    """The request in the first `length` bytes of `buffer`."""
    _, op, unique, node, _, _, thread_id, _ = _HEADER_IN.unpack_from(buffer)
    return Request(op, unique, node, thread_id, bytes(buffer[_HEADER_IN.size : length]))


def reply(unique: int, body: bytes = b"") -> Buffers:
    """An answer."""
    return (_HEADER_OUT.pack(_HEADER_OUT.size + len(body), 0, unique), body)


def refusal(unique: int, error: int) -> Buffers:
    """An errno as the answer; what is no errno the kernel would not take, and is EIO."""
    known = error if error in errno.errorcode and error < 512 else errno.EIO
    return (_HEADER_OUT.pack(_HEADER_OUT.size, -known, unique),)


def refused_instead(answer: Buffers) -> Buffers:
    """EIO to whom `answer` was meant for."""
    _, _, unique = _HEADER_OUT.unpack(answer[0])
    return refusal(unique, errno.EIO)


def resend() -> bytes:
    """Asks for every request again that another process had read and not answered."""
    return _HEADER_OUT.pack(_HEADER_OUT.size, _RESEND, 0)


def forget_name(name: str) -> bytes:
    """Tells the kernel that a name of the folder is no more, so that it frees its pages."""
    encoded = name.encode()
    body = _NOTIFY_ENTRY.pack(ROOT, len(encoded), 0) + encoded + b"\0"
    return _HEADER_OUT.pack(_HEADER_OUT.size + len(body), _INVALIDATE_ENTRY, 0) + body


def offered(request: Request) -> Feature | None:
    """What the kernel's INIT offers; None if it is too old for us."""
    major, minor, _, flags = _INIT_IN.unpack_from(request.body)
    if flags & Feature.INIT_EXT and len(request.body) >= 20:
        flags |= struct.unpack_from("<I", request.body, 16)[0] << 32
    features = Feature(flags & _WANTED)
    if (major, minor) < (7, _OLDEST_MINOR) or _NEEDED & ~features:
        return None
    return features


def agreed(features: Feature, *, readahead_bytes: int = MOST_READ_BYTES) -> bytes:
    """The body of the answer to INIT."""
    return _INIT_OUT.pack(
        7,
        _MINOR,
        readahead_bytes,
        features & 0xFFFF_FFFF,
        _MOST_BACKGROUND,
        _MOST_BACKGROUND * 3 // 4,
        _MAX_WRITE,
        1,
        MOST_READ_BYTES // _PAGE_BYTES,
        0,
        features >> 32,
    )


def read_range(request: Request) -> tuple[int, int]:
    """Offset and size of a READ; of a READDIR the entry after which to go on."""
    _, offset, size = _READ_IN.unpack_from(request.body)
    return offset, size


def interrupted(request: Request) -> int:
    """The `unique` of the request that an INTERRUPT is about."""
    return int(struct.unpack_from("<Q", request.body)[0])


def attributes(
    node: int,
    mode: int,
    size: int,
    *,
    links: int,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    device: int = 0,
) -> bytes:
    """What `stat` says; `mtime` in unsigned seconds, modulo 2^64."""
    times = (mtime, mtime, mtime, 0, 0, 0)
    blocks = -(-size // 512)
    return _ATTR.pack(node, size, blocks, *times, mode, links, uid, gid, device, _PAGE_BYTES, 0)


def file_attributes(node: int, size: int) -> bytes:
    return attributes(node, stat.S_IFREG | 0o444, size, links=1)


def folder_attributes() -> bytes:
    return attributes(ROOT, stat.S_IFDIR | 0o555, 0, links=2)


def attributes_body(packed: bytes) -> bytes:
    return _ATTR_OUT.pack(_FOREVER_S, 0, 0) + packed


def entry_body(node: int, packed: bytes) -> bytes:
    """The answer to a LOOKUP that found something, valid until it is taken back."""
    return _ENTRY_OUT.pack(node, 0, _FOREVER_S, _FOREVER_S, 0, 0) + packed


def no_entry_body() -> bytes:
    """The answer to a LOOKUP of what will never be there."""
    return _ENTRY_OUT.pack(0, 0, _FOREVER_S, 0, 0, 0) + bytes(_ATTR.size)


def listing(entries: Iterable[tuple[int, int, bytes, int]], size: int) -> bytes:
    """The answer to READDIR, as much as `size` holds.

    An entry is its node, where a READDIR goes on after it, its name, and st_mode >> 12.
    """
    body = bytearray()
    for node, then, name, kind in entries:
        entry = _DIRENT.pack(node, then, len(name), kind) + name
        entry += bytes(-len(entry) % 8)
        if len(body) + len(entry) > size:
            break
        body += entry
    return bytes(body)


def xattr_wanted(request: Request) -> tuple[int, bytes]:
    """How much room the program has (0: it asks for the size), and which attribute, if one."""
    (size,) = struct.unpack_from("<I", request.body)
    return size, request.body[8:].rstrip(b"\0")


def xattr_body(value: bytes, room: int) -> bytes:
    """An attribute's value, or a list of names. Raises OSError (ERANGE)."""
    if not room:
        return struct.pack("<II", len(value), 0)
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def changed_folder() -> bytes:
    """Tells the kernel that its list of the folder's names is out of date."""
    body = struct.pack("<Qqq", ROOT, 0, 0)
    return _HEADER_OUT.pack(_HEADER_OUT.size + len(body), _INVALIDATE_INODE, 0) + body


def statfs_body(files: int, size: int) -> bytes:
    blocks = -(-size // _PAGE_BYTES)
    return _STATFS_OUT.pack(blocks, 0, 0, files, 0, _PAGE_BYTES, MOST_NAME_BYTES, _PAGE_BYTES, 0)
