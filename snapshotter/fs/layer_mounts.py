"""Mounts layers: each once a node, however many containers see it."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import structlog

from infra.errors import DependencyMissing, ImageInvalid, StoreUnavailable
from snapshotter.fs import linux, loop_device
from snapshotter.fs.control_client import Control
from snapshotter.fs.layout import Layout
from snapshotter.fs.linux import MountFlag
from snapshotter.fs.served_files import checked_name

log = structlog.get_logger()

_EROFS = "erofs"


class MountImage(Protocol):
    """Mounts the EROFS image in a file. Raises OSError."""

    def __call__(self, image: Path, point: Path) -> None: ...


def mount_erofs(image: Path, point: Path) -> None:
    """By the file itself where the kernel can (Linux 6.12), else by a loop device."""
    if not _mounted_by_file(image, point):
        mount_by_loop(image, point)


def _mounted_by_file(image: Path, point: Path) -> bool:
    # directio: pages of the image would be kept a second time, in the FUSE file
    for options in ("directio", ""):
        try:
            linux.mount(str(image), point, _EROFS, MountFlag.READ_ONLY, options)
            return True
        except OSError as error:
            if error.errno == errno.ENOTBLK:
                return False
            if error.errno != errno.EINVAL or not options:
                raise
    return False


def mount_by_loop(image: Path, point: Path) -> None:
    """By a block device made of the file."""
    device, descriptor = loop_device.attach(image)
    try:
        linux.mount(str(device), point, _EROFS, MountFlag.READ_ONLY)
    finally:
        os.close(descriptor)


def _read_ahead(image: Path, head_bytes: int) -> None:
    """Has the kernel read the metadata in large pieces: a walk would ask for page after page."""
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, head_bytes, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


class LayerMounts:
    """Layers by name: served as a file by the data process, mounted here."""

    def __init__(
        self, layout: Layout, control: Control, mount_image: MountImage = mount_erofs
    ) -> None:
        self._layout = layout
        self._control = control
        self._mount_image = mount_image
        self._lock = Lock()  # guards that each layer is mounted once

    def mount(self, name: str, spec: Mapping[str, Any]) -> Path:
        """The folder with the layer's files; may be repeated, after restarts of anything too.

        Waits while the data process is being replaced. Raises what the data process says of the
        spec, ImageInvalid, DependencyMissing (a kernel without EROFS), StoreUnavailable.
        """
        point = self.point(name)
        with self._lock:
            if not self._is_mounted(point):
                head_bytes = self._control.add(name, spec)
                point.mkdir(mode=0o700, exist_ok=True)
                self._mount_served(name, point)
                _read_ahead(self._layout.files / name, head_bytes)
                log.info("layer.mounted", layer=name)
        return point

    def unmount(self, name: str) -> None:
        """Takes the layer away; may be repeated, and while files are open: then those fail."""
        point = self.point(name)
        with self._lock:
            while self._is_mounted(point):
                linux.unmount(point, lazily=True)
            self._control.remove(name)
            if point.exists():
                point.rmdir()

    def point(self, name: str) -> Path:
        """Where the layer is mounted, if it is; overlayfs would take a colon for two folders."""
        return self._layout.layers / checked_name(name).replace(":", "-")

    def mounted(self) -> list[str]:
        """Names of the layers that are mounted."""
        below = linux.mounts_below(self._layout.layers, linux.mounts())
        return sorted({mount.point.name.replace("-", ":") for mount in below})

    def _mount_served(self, name: str, point: Path) -> None:
        try:
            self._mount_image(self._layout.files / name, point)
        except OSError as error:
            point.rmdir()
            match error.errno:
                case errno.ENODEV:
                    raise DependencyMissing("the kernel has no EROFS") from error
                case errno.EUCLEAN | errno.EINVAL:
                    raise ImageInvalid(f"{name} is no EROFS image") from error
                case _:
                    raise StoreUnavailable(f"{name}: {error.strerror}") from error

    def _is_mounted(self, point: Path) -> bool:
        return any(mount.point == point for mount in linux.mounts())
