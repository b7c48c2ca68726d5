"""The descriptor of the flat folder, held by two processes, so that neither's end ends the folder.

The kernel fails every read of the folder when nobody has its descriptor any more.
"""

import ctypes
import errno
import os
import select
from contextlib import suppress
from pathlib import Path

from snapshotter.fs import fuse_wire, linux
from snapshotter.fs.flat_folder import DEVICE, KIND, abort_folder
from snapshotter.fs.fuse_wire import Feature
from snapshotter.fs.layout import Layout

_PIDFD_GETFD = 438  # Linux 5.6; the same number on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


def held_too(keeper: int) -> int:
    """The descriptor that the keeper serves, ours from now on as well. Raises OSError."""
    process = os.pidfd_open(keeper)
    try:
        descriptor = _libc.syscall(_PIDFD_GETFD, process, _served_by(keeper), 0)
        if descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), DEVICE)
        return int(descriptor)  # closed by exec
    finally:
        os.close(process)


def _served_by(keeper: int) -> int:
    for entry in Path(f"/proc/{keeper}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if str(entry.readlink()) == DEVICE:
                return int(entry.name)
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), DEVICE)


def take_over(layout: Layout, descriptor: int) -> Feature | None:
    """What was agreed on a folder that an earlier keeper mounted; None where it cannot go on.

    Then its readers have failed, or do so now.
    """
    if not _is_mounted(layout.files) or _is_aborted(descriptor):
        return None
    try:
        os.write(descriptor, fuse_wire.resend())
    except OSError:  # before Linux 6.9: what the dead one had read would wait for ever
        abort_folder(layout.files)
        return None
    return Feature.RESEND


def _is_mounted(point: Path) -> bool:
    return any(mount.point == point and mount.kind == KIND for mount in linux.mounts())


def _is_aborted(descriptor: int) -> bool:
    look = select.poll()
    look.register(descriptor, select.POLLIN)
    return any(event & select.POLLERR for _, event in look.poll(0))
