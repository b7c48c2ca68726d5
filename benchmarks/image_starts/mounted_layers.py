"""What mounted layers cost beside unpacked ones once their bytes are here, and what kills cost."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure.report import Target
from benchmarks.measure.torch_image import ENVIRONMENT, in_image
from snapshotter.fs import linux
from snapshotter.fs.linux import MountFlag
from tests.support.layers import RunningLayers, local_layer, running_layers
from tests.support.processes import until

KINDS = ("unpacked", "mounted")
KILLS = 20

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_IMPORT = "import torch"
_WALK = """
import os, sys
for folder, folders, files in os.walk(sys.argv[1]):
    for name in (*folders, *files):
        os.lstat(os.path.join(folder, name))
"""
# Reads a tree again and again, never from the page cache, until its input ends.
_READER = """
import hashlib, json, os, select, sys, time
root, passes, failed, worst, said = sys.argv[1], 0, 0, 0.0, set()
while not passes or not select.select([0], [], [], 0)[0]:
    digest = hashlib.sha256()
    try:
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                if os.path.islink(path) or not os.path.isfile(path): continue
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                while True:
                    began = time.monotonic()
                    part = os.read(descriptor, 1 << 20)
                    worst = max(worst, time.monotonic() - began)
                    if not part: break
                    digest.update(part)
                os.close(descriptor)
        passes += 1
        said.add(digest.hexdigest())
    except OSError as error:
        failed += 1
        print(error, file=sys.stderr)
print(json.dumps({"passes": passes, "failed": failed, "worst_s": worst, "said": sorted(said)}))
"""


@dataclass
class Figures:
    """Seconds of each round, by what was done and in which kind of root."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def time(self, what: str, kind: str, command: Sequence[str]) -> None:
        began = time.monotonic()
        subprocess.run(command, check=True, env=ENVIRONMENT)
        self.seconds.setdefault((what, kind), []).append(time.monotonic() - began)

    def ratio(self, what: str) -> float:
        mounted, unpacked = (statistics.median(self.seconds[what, k]) for k in reversed(KINDS))
        return mounted / unpacked

    def shown(self, what: str) -> str:
        times = ", ".join(f"{k} {statistics.median(self.seconds[what, k]):.2f} s" for k in KINDS)
        return f"{what} ({times})"


def measure_layers(tars: Sequence[Path], folder: Path, *, rounds: int) -> list[Target]:
    """Rows for the report; `tars` are uncompressed layers, the base first. Needs root."""
    figures = Figures()
    specs = {f"{tar.stem}:0": local_layer(tar, beside=folder) for tar in tars}
    unpacked = [_unpacked(tar, folder / tar.stem) for tar in tars]
    with running_layers(folder / "root") as layers:
        mounts = layers.mounts()

        def below(kind: str) -> list[Path]:
            """The layers' folders, mounted if need be."""
            if kind == "unpacked":
                return unpacked
            return [mounts.mount(name, spec) for name, spec in specs.items()]

        cold_reads = 0
        for kind in KINDS * rounds:
            for name in specs:
                mounts.unmount(name)
            _DROP_CACHES.write_text("3")
            with container(below(kind), folder) as root:
                figures.time("cold walk", kind, [sys.executable, "-c", _WALK, str(root)])
                before = _reads(layers)
                figures.time("cold import", kind, _in(root, _IMPORT))
                cold_reads = _reads(layers) - before  # the last round's is that of "mounted"
        with container(below(KINDS[0]), folder) as one, container(below(KINDS[1]), folder) as two:
            roots = dict(zip(KINDS, (one, two), strict=True))
            for kind in KINDS * 2:  # the second shows the kernel what is read again
                subprocess.run(_in(roots[kind], _IMPORT), check=True, env=ENVIRONMENT)
            before = _reads(layers)
            for kind in KINDS * rounds:
                figures.time("warm import", kind, _in(roots[kind], _IMPORT))
            warm_reads = (_reads(layers) - before) / rounds
            for kind in KINDS * rounds:
                with container(below(kind), folder) as another:
                    figures.time("second container", kind, _in(another, _IMPORT))
    return [
        Target(figures.shown("cold walk"), 1.5, figures.ratio("cold walk"), True),
        Target(figures.shown("cold import"), 1.5, figures.ratio("cold import"), True),
        Target(figures.shown("warm import"), 1.15, figures.ratio("warm import"), True),
        # a few pages that no import before happened to touch
        Target("requests of a warm import, of a cold one's", 0.02, warm_reads / cold_reads, True),
        Target(figures.shown("second container"), 1.2, figures.ratio("second container"), True),
    ]


def measure_kills(tar: Path, folder: Path, *, kills: int = KILLS) -> list[Target]:
    """Kills the data process while all of a layer is read, from here and from far. Needs root."""
    unpacked = _unpacked(tar, folder / tar.stem)
    with running_layers(folder / "root") as layers:
        points = [
            layers.mounts().mount(f"{where}:0", local_layer(tar, delay_s=delay_s, beside=folder))
            for where, delay_s in (("here", None), ("far", 0.001))
        ]
        readers = [_reader(point) for point in (*points, points[0])]
        for _ in range(kills):
            _kill_at_work(layers)
        told = [_told(reader) for reader in readers]
    right = _told(_reader(unpacked))["said"]
    failed = sum(reader["failed"] + (reader["said"] not in (right, [])) for reader in told)
    worst_s = max(reader["worst_s"] for reader in told)
    return [
        Target(
            f"reads that failed, or passes with wrong bytes, in {kills} kills", 0, failed, True, ""
        ),
        Target("longest read among them", 1, worst_s, True, "s"),
    ]


@contextmanager
def container(below: Sequence[Path], folder: Path) -> Iterator[Path]:
    """A writable root over the layers, the base first, as a container would have it."""
    own = Path(tempfile.mkdtemp(dir=folder))
    root, upper, work = (own / name for name in ("merged", "upper", "work"))
    for made in (root, upper, work):
        made.mkdir()
    lower = ":".join(str(layer) for layer in reversed(below))
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    linux.mount("overlay", root, "overlay", MountFlag(0), options)
    try:
        subprocess.run(["mount", "--bind", "/dev", root / "dev"], check=True)
        yield root
    finally:
        subprocess.run(["umount", "--recursive", root], check=True)


def _in(root: Path, code: str) -> list[str]:
    return ["/usr/sbin/chroot", str(root), *in_image(code)]


def _unpacked(tar: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    subprocess.run(["tar", "--extract", "--file", tar, "--directory", folder], check=True)
    return folder


def _reader(root: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", _READER, str(root)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _told(reader: "subprocess.Popen[bytes]") -> dict[str, Any]:
    told: dict[str, Any] = json.loads(reader.communicate()[0])
    return told


def _reads(layers: RunningLayers) -> int:
    return int(layers.control.ask("counts").get("read", 0))


def _kill_at_work(layers: RunningLayers) -> None:
    serving = layers.data_process()

    until(lambda: _reads(layers) > 200, seconds=60, what="reads are served again")
    serving.kill()
    serving.wait(60)
