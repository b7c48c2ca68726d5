"""The ways in which a kernel can show a layer's image as files."""

import errno
import os
from pathlib import Path
from typing import Protocol

import structlog

from snapshotter.fs import linux, loop_device
from snapshotter.fs.layer_trees import SUFFIX
from snapshotter.fs.linux import MountFlag

log = structlog.get_logger()

_EROFS = "erofs"


class MountImage(Protocol):
    """Mounts the image in a served file, read-only.

    Raises OSError, EINVAL for what is no image.
    """

    def __call__(self, image: Path, point: Path) -> None: ...


def mount_image(image: Path, point: Path) -> None:
    """In the best way that this kernel knows. Raises the last one's OSError."""
    for way in (mount_by_file, mount_by_loop):
        try:
            return way(image, point)
        except OSError as error:
            log.info("layer.other_way", image=image.name, not_by=way.__name__, why=error.strerror)
    return mount_by_tree(image, point)


def mount_by_file(image: Path, point: Path) -> None:
    """EROFS on the file itself: Linux 6.12 and later."""
    try:
        # pages of the image would be kept a second time, in the FUSE file
        linux.mount(str(image), point, _EROFS, MountFlag.READ_ONLY, "directio")
    except OSError as error:
        if error.errno != errno.EINVAL:  # before 6.15 the option is unknown
            raise
        linux.mount(str(image), point, _EROFS, MountFlag.READ_ONLY)


def mount_by_loop(image: Path, point: Path) -> None:
    """EROFS on a block device made of the file: Linux 6.4 and later."""
    device, descriptor = loop_device.attach(image)
    try:
        linux.mount(str(device), point, _EROFS, MountFlag.READ_ONLY)
    finally:
        os.close(descriptor)


def mount_by_tree(image: Path, point: Path) -> None:
    """No EROFS: the data process answers for every file, see layer_trees."""
    tree = image.with_name(image.name + SUFFIX)
    linux.mount(str(tree), point, "", MountFlag.BIND)
    # the flat folder runs no programs; what is in a layer may
    linux.mount("", point, "", MountFlag.BIND | MountFlag.REMOUNT | MountFlag.READ_ONLY)
