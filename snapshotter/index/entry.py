"""One file of an image layer, as the layer's tar says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class Kind(IntEnum):
    """What a path is; the numbers are those of the index on the wire."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    HARDLINK = 4
    CHAR = 5
    BLOCK = 6
    FIFO = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """A path of a layer, normalised and safe: relative, no empty, `.` or `..` part; "" is the root.

    Within one layer each path appears once (the tar's last word on it), every parent is an
    earlier DIRECTORY, and a HARDLINK's target is the path of an earlier FILE. Whiteouts keep
    their tar names (`.wh.*`). Names are text with surrogate escapes for bytes that are not UTF-8.
    """

    path: str
    kind: Kind
    mode: int  # permission bits, setuid, setgid and sticky; not the kind
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # unix seconds
    size: int = 0  # bytes of a FILE
    offset: int = 0  # of its first byte in the uncompressed tar, a multiple of 512
    target: str = ""  # SYMLINK: its text; HARDLINK: a path
    device: tuple[int, int] = (0, 0)  # major, minor of CHAR and BLOCK
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
