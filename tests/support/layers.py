"""Layers mounted for real: a keeper of our own, and a data process whose layers are local files.

Run as a program (`python -m tests.support.layers ROOT`) it is the keeper.
"""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.tether import tethered
from snapshotter.fs.control_client import ControlClient
from snapshotter.fs.data_process import DataProcess
from snapshotter.fs.image_mounts import MountImage, mount_image
from snapshotter.fs.keeper import keep
from snapshotter.fs.layer_file import LayerFile
from snapshotter.fs.layer_mounts import LayerMounts
from snapshotter.fs.layout import Layout
from snapshotter.fs.local_bytes import LocalBytes
from snapshotter.fs.ports import ServedFile
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.erofs_writer import erofs_metadata
from tests.support.mounts import unmount_below
from tests.support.processes import require, until

_ROOT = Path(__file__).parent.parent.parent


class DistantBytes(LocalBytes):
    """A file that takes its time, as an origin does; so long as `stop` exists, for ever."""

    def __init__(self, path: Path, delay_s: float, stop: Path) -> None:
        super().__init__(path)
        self._delay_s = delay_s
        self._stop = stop

    def cached(self, offset: int, length: int) -> bytes | None:
        return None

    def read(self, offset: int, length: int) -> bytes:
        time.sleep(self._delay_s)  # noqa: TID251 - an origin is as far as it is
        while self._stop.exists():
            time.sleep(0.01)  # noqa: TID251
        return super().read(offset, length)


def open_distant(name: str, spec: Mapping[str, Any]) -> ServedFile:
    """OpenFile for the layers of `local_layer`."""
    stream = Path(spec["stream"])
    metadata = Path(spec["metadata"]).read_bytes()
    if (delay_s := spec.get("delay_s")) is None:
        return LayerFile(name, metadata, LocalBytes(stream))
    return LayerFile(name, metadata, DistantBytes(stream, delay_s, Path(spec["stop"])))


def entries_of(tar: Path) -> list[Entry]:
    """What is in an honest tar, as Python's own reader sees it."""
    kinds = {
        tarfile.REGTYPE: Kind.FILE,
        tarfile.DIRTYPE: Kind.DIRECTORY,
        tarfile.SYMTYPE: Kind.SYMLINK,
        tarfile.LNKTYPE: Kind.HARDLINK,
        tarfile.CHRTYPE: Kind.CHAR,
        tarfile.BLKTYPE: Kind.BLOCK,
        tarfile.FIFOTYPE: Kind.FIFO,
    }
    with tarfile.open(tar) as archive:
        return [
            Entry(
                path=os.path.normpath(member.name) if member.name not in (".", "./") else "",
                kind=kinds[member.type],
                mode=member.mode,
                uid=member.uid,
                gid=member.gid,
                mtime=int(member.mtime),
                size=member.size if member.isreg() else 0,
                offset=member.offset_data if member.isreg() else 0,
                target=os.path.normpath(member.linkname) if member.islnk() else member.linkname,
                device=(member.devmajor, member.devminor) if member.isdev() else (0, 0),
                xattrs={
                    name.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
                    for name, value in member.pax_headers.items()
                    if name.startswith("SCHILY.xattr.")
                },
            )
            for member in archive
        ]


def local_layer(
    tar: Path, *, delay_s: float | None = None, beside: Path | None = None
) -> dict[str, Any]:
    """The spec of a layer whose tar is on this disk; it is distant where a delay is given."""
    metadata = (beside or tar.parent) / f"{tar.stem}.erofs"
    metadata.write_bytes(erofs_metadata(entries_of(tar)))
    return {
        "metadata": str(metadata),
        "stream": str(tar),
        "delay_s": delay_s,
        "stop": str(metadata.with_suffix(".stop")),
    }


@dataclass
class RunningLayers:
    """One keeper; who kills it starts it again."""

    layout: Layout
    process: subprocess.Popen[bytes] | None = None

    @property
    def control(self) -> ControlClient:
        return ControlClient(self.layout.control, deadline_s=60)

    def mounts(self, way: MountImage = mount_image) -> LayerMounts:
        return LayerMounts(self.layout, self.control, way)

    def start(self, held: int | None = None) -> None:
        """`held`: the descriptor of an earlier keeper's folder."""
        descriptors = () if held is None else (held,)
        command = (sys.executable, "-m", __name__, str(self.layout.root), *map(str, descriptors))
        self.process = subprocess.Popen(tethered(*command), cwd=_ROOT, pass_fds=descriptors)
        self.control.ask("list")

    def data_process(self) -> psutil.Process:
        """The one that serves now; waits for it."""
        assert self.process is not None
        keeper = psutil.Process(self.process.pid)
        found: list[psutil.Process] = []

        def serves() -> bool:
            for child in keeper.children():
                with suppress(psutil.Error):  # it may be gone by now
                    if child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child)
            return bool(found)

        until(serves, seconds=60, what="a data process serves")
        return found[0]

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(60)
        self.process = None
        return status


@contextmanager
def running_layers(folder: Path) -> Iterator[RunningLayers]:
    """Serves and mounts below `folder`, which has nothing mounted afterwards."""
    require(os.geteuid() == 0, "root, which mounting needs,")
    require(Path("/dev/fuse").exists(), "/dev/fuse")
    running = RunningLayers(Layout(folder))
    running.start()
    try:
        yield running
    finally:
        if running.process is not None:
            running.end(signal.SIGKILL)
        unmount_below(folder)


def _main() -> int:
    layout, held = Layout(Path(sys.argv[1])), [int(argument) for argument in sys.argv[2:]]

    def serve(descriptor: int) -> None:
        DataProcess(layout, descriptor, open_distant, retry_s=30).serve()

    return keep(layout, serve, *held)


if __name__ == "__main__":
    sys.exit(_main())
