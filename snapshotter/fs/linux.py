"""Mounting, as system calls: no program is started, and no shell reads a path."""

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class MountFlag(IntFlag):
    """Flags of mount(2)."""

    READ_ONLY = 1
    NO_SUID = 2
    NO_DEV = 4
    NO_EXEC = 8
    REMOUNT = 32
    BIND = 4096


def mount(source: str, target: Path, kind: str, flags: MountFlag, options: str = "") -> None:
    """mount(2). Raises OSError. A program that waits in it for a dead server can be killed."""
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), int(flags), os.fsencode(options)
    )
    if done != 0:
        raise _error(target)


def unmount(target: Path, *, lazily: bool = False) -> None:
    """umount2(2); lazily: at once out of sight, and gone when the last user is. Raises OSError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH if lazily else 0) != 0:
        raise _error(target)


def _error(target: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(target))


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    point: Path
    kind: str
    source: str
    device: str  # major:minor of what is mounted


def mounts() -> list[Mount]:
    """Everything mounted here, oldest first."""
    return parsed_mounts(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def parsed_mounts(mountinfo: str) -> list[Mount]:
    """The mounts of a mountinfo, which writes a space in a path as \\040 (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        fields, (kind, source, *_) = head.split(" "), tail.split(" ")
        found.append(Mount(Path(_plain(fields[4])), kind, _plain(source), fields[2]))
    return found


def mounts_below(folder: Path, among: Iterable[Mount]) -> list[Mount]:
    """Those at or beneath the folder, the newest first."""
    return [mount for mount in among if mount.point.is_relative_to(folder)][::-1]


def _plain(field: str) -> str:
    for octal, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        field = field.replace(f"\\{octal}", character)
    return field
