"""One file of an image layer, as the layer's tar says it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from infra.errors import ImageInvalid

MOST_NAME_BYTES: Final = 255  # NAME_MAX
MOST_PATH_BYTES: Final = 4095  # PATH_MAX without its NUL


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

    Entries are in the order of the tar, which may name a path twice or never name a parent.
    Whiteouts keep their tar names (`.wh.*`). Names are text with surrogate escapes for bytes that
    are not UTF-8.
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


def safe_path(name: str) -> str:
    """A tar's name as a path below the layer's root. Raises ImageInvalid if it leads out of it."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    path = "/".join(parts)
    if ".." in parts:
        raise ImageInvalid(f"the layer has a path that leads elsewhere: {name[:100]!a}")
    encoded = os.fsencode(path)
    longest = max((len(part) for part in encoded.split(b"/")), default=0)
    if len(encoded) > MOST_PATH_BYTES or longest > MOST_NAME_BYTES or b"\0" in encoded:
        raise ImageInvalid(f"the layer has a path that no file system takes: {name[:100]!a}")
    return path
