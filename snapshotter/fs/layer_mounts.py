"""Mounts layers: each once a node, however many containers see it."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import structlog

from infra.errors import ImageInvalid, StoreUnavailable
from snapshotter.fs import linux
from snapshotter.fs.control_client import Control
from snapshotter.fs.image_mounts import MountImage, mount_image
from snapshotter.fs.layout import Layout
from snapshotter.fs.served_files import checked_name

log = structlog.get_logger()


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
        self, layout: Layout, control: Control, mount_image: MountImage = mount_image
    ) -> None:
        self._layout = layout
        self._control = control
        self._mount_image = mount_image
        self._lock = Lock()  # guards that each layer is mounted once

    def mount(self, name: str, spec: Mapping[str, Any]) -> Path:
        """The folder with the layer's files; may be repeated, after restarts of anything too.

        Waits while the data process is being replaced. Raises what the data process says of the
        spec, ImageInvalid, StoreUnavailable.
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
            if error.errno == errno.EINVAL:
                raise ImageInvalid(f"{name} is no EROFS image") from error
            raise StoreUnavailable(f"{name}: {error.strerror}") from error

    def _is_mounted(self, point: Path) -> bool:
        return any(mount.point == point for mount in linux.mounts())
