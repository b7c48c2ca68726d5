"""A private containerd in its own process and folders, with our snapshotter as a proxy plugin."""

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from infra.containerd.client import Containerd
from infra.containerd.methods import Snapshots
from infra.containerd.protos import snapshots_pb2
from infra.tether import tethered
from tests.support.mounts import unmount_below
from tests.support.processes import alive, descendants, require, until

SNAPSHOTTER = "firstlight"
_RUNC = Path("/run/containerd/runc")

_CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{socket}"
[proxy_plugins.{snapshotter}]
  type = "snapshot"
  address = "{snapshotter_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    disable_snapshot_annotations = false
"""
_DISABLED = (
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
)


class RunningContainerd:
    """Starts, kills and restarts one containerd; `snapshotter_socket` is where ours has to listen.

    Its folder is short and outside pytest's: the path of a socket has 107 bytes at most.
    """

    def __init__(self, folder: Path) -> None:
        require(os.geteuid() == 0, "root, which containers need,")
        for program in ("containerd", "ctr", "runc"):
            require(shutil.which(program), program)
        self.folder = folder
        self.log = folder / "containerd.log"
        self.socket = folder / "containerd.sock"
        # runc knows containers of all containerds of a machine by namespace and name
        self.namespace = f"fl-{folder.name.encode().hex()}"  # a folder may be called fl-_a__b
        self._names = itertools.count()
        (folder / "said").mkdir()
        self.snapshotter_socket = folder / "snapshotter.sock"
        self._config = folder / "containerd.toml"
        self._config.write_text(
            _CONFIG.format(
                folder=folder,
                socket=self.socket,
                disabled=", ".join(f'"{name}"' for name in _DISABLED),
                snapshotter=SNAPSHOTTER,
                snapshotter_socket=self.snapshotter_socket,
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Runs it and waits until it answers."""
        with self.log.open("ab") as log:
            command = tethered("containerd", "--config", str(self._config))
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._answers, seconds=60, what="containerd answers")

    def kill(self) -> None:
        """Ends it as a power cut would; containers live on, each with its shim."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Ends it with its containers and takes its mounts away."""
        self.kill()
        shims = [it for it in psutil.process_iter(["cmdline"]) if self._is_shim(it)]
        for shim in shims:
            for process in descendants(shim.pid):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        until(lambda: not alive(shims), seconds=60, what="the shims are gone")
        unmount_below(self.folder)
        shutil.rmtree(_RUNC / self.namespace, ignore_errors=True)
        for group in sorted(Path("/sys/fs/cgroup").rglob(f"{self.namespace}/**/"), reverse=True):
            with suppress(OSError):
                group.rmdir()

    def find_snapshotter(self) -> None:
        """Waits until it has found ours: after a restart of that one it looks only now and then.

        Our own clients wait for that, `ctr` does not.
        """
        look = snapshots_pb2.ViewSnapshotRequest(snapshotter=SNAPSHOTTER, key="probe")
        forget = snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key="probe")
        with Containerd(self.socket, namespace=self.namespace, away_s=60) as client:
            client.call(Snapshots.VIEW, look)
            client.call(Snapshots.REMOVE, forget)

    def run(self, image: str, *command: str, snapshotter: str = SNAPSHOTTER) -> tuple[int, str]:
        """A container of that command: its exit code, and all that it said."""
        with self._heard(command) as (wrapped, name, said):
            options = ("--rm", "--snapshotter", snapshotter, *self._mount)
            done = self.run_ctr("run", *options, image, name, *wrapped)
        return done.returncode, said()

    def start_container(self, image: str, name: str, *, snapshotter: str = SNAPSHOTTER) -> None:
        """One that only runs, to look at things from inside."""
        options = ("-d", "--snapshotter", snapshotter, *self._mount)
        self.ctr("run", *options, image, name, "/bin/sleep", "1000")

    def execute(self, name: str, *command: str) -> tuple[int, str]:
        """A command in a container that runs: its exit code, and all that it said."""
        with self._heard(command) as (wrapped, execution, said):
            done = self.run_ctr("task", "exec", "--exec-id", execution, name, *wrapped)
        return done.returncode, said()

    def end_container(self, name: str) -> None:
        self.ctr("task", "rm", "--force", name)
        self.ctr("container", "rm", name)

    def ctr(self, *arguments: str, check: bool = True) -> str:
        """What `ctr` prints; fails with what it says when it fails."""
        done = self.run_ctr(*arguments)
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}"
        return done.stdout

    def run_ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ctr` with its exit status."""
        command = ["ctr", "--address", str(self.socket), "--namespace", self.namespace]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=110
        )

    @property
    def _mount(self) -> tuple[str, str]:
        return "--mount", f"type=bind,src={self.folder / 'said'},dst=/said,options=rbind:rw"

    @contextmanager
    def _heard(self, command: Sequence[str]) -> Iterator[tuple[list[str], str, Callable[[], str]]]:
        """The command as one that writes into a file of its own: `ctr` loses the end of what a
        container says when that ends at once.
        """
        name = f"run-{next(self._names)}"
        said = self.folder / "said" / name
        said.touch()
        script = f'exec "$@" >/said/{name} 2>&1'
        yield ["/bin/sh", "-c", script, "sh", *command], name, said.read_text

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        return self.run_ctr("version").returncode == 0

    def _is_shim(self, process: psutil.Process) -> bool:
        command: list[str] = process.info["cmdline"] or []
        return str(self.socket) in command and "shim" in command[0]


@contextmanager
def running_containerd() -> Iterator[RunningContainerd]:
    """A containerd that answers, ended with everything it started at the end."""
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        containerd = RunningContainerd(Path(folder))
        try:
            containerd.start()
            yield containerd
        finally:
            containerd.close()
