"""The mount of the flat FUSE folder: made, agreed on, ended."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import structlog

from infra.errors import DependencyMissing
from snapshotter.fs import fuse_wire, linux
from snapshotter.fs.fuse_wire import Feature
from snapshotter.fs.layout import Layout
from snapshotter.fs.linux import Mount, MountFlag

log = structlog.get_logger()

KIND = "fuse.firstlight"
DEVICE = "/dev/fuse"
# users of containers read trees; the kernel compares modes, and our folder is for root alone
_ACCESS = "allow_other,default_permissions"
_FLAGS = MountFlag.READ_ONLY | MountFlag.NO_SUID | MountFlag.NO_DEV | MountFlag.NO_EXEC


def mount_folder(point: Path) -> tuple[int, Feature]:
    """Mounts the folder, and answers the kernel's first request.

    Returns the descriptor to serve it on, and what was agreed. Raises OSError, DependencyMissing.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,{_ACCESS}"
        linux.mount("firstlight", point, KIND, _FLAGS, options)
        try:
            return descriptor, _agree(descriptor)
        except BaseException:
            linux.unmount(point, lazily=True)
            raise
    except BaseException:
        os.close(descriptor)
        raise


def _agree(descriptor: int) -> Feature:
    buffer = bytearray(fuse_wire.REQUEST_BYTES)
    request = fuse_wire.parsed(buffer, os.readv(descriptor, [buffer]))
    features = fuse_wire.offered(request)
    if features is None:
        os.writev(descriptor, fuse_wire.refusal(request.unique, errno.EPROTO))
        raise DependencyMissing("the kernel's FUSE is older than Linux 4.20")
    os.writev(descriptor, fuse_wire.reply(request.unique, fuse_wire.agreed(features)))
    return features


def abort_folder(point: Path) -> None:
    """Fails every request of the folder that waits and all that follow."""
    for mount in linux.mounts():
        if mount.point == point and mount.kind == KIND:
            connection = mount.device.partition(":")[2]
            with suppress(OSError):  # the control file system is not mounted everywhere
                Path(f"/sys/fs/fuse/connections/{connection}/abort").write_text("1")


def unmount_all(layout: Layout) -> list[Mount]:
    """Detaches every mount below the layout, layers before the folder their files are in.

    Also those whose server is dead (ENOTCONN). Returns what there was.
    """
    below = linux.mounts_below(layout.root, linux.mounts())
    below.sort(key=lambda mount: mount.kind == KIND)
    for mount in below:
        try:
            linux.unmount(mount.point, lazily=True)
        except OSError as error:
            log.warning("mount.stays", mount=str(mount.point), error=error.strerror)
    return below
