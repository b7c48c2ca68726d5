"""Our snapshotter as a node runs it: in processes of its own, beside a private containerd."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from snapshotter.fs.control_client import ControlClient
from tests.support.containerd import SNAPSHOTTER, RunningContainerd
from tests.support.mounts import unmount_below
from tests.support.processes import alive, require, until


class RunningSnapshotter:
    """Starts, kills and restarts one; its state stays."""

    def __init__(self, containerd: RunningContainerd, environment: dict[str, str]) -> None:
        require(Path("/dev/fuse").exists(), "/dev/fuse")
        self.containerd = containerd
        self.state_dir = containerd.folder / "snapshotter"
        self.log = containerd.folder / "snapshotter.log"
        self.control = ControlClient(self.state_dir / "fs/control.sock", deadline_s=60)
        self.environment = environment | {
            "PLATFORM_SNAPSHOTTER_STATE_DIR": str(self.state_dir),
            "PLATFORM_SNAPSHOTTER_SOCKET": str(containerd.snapshotter_socket),
            "PLATFORM_SNAPSHOTTER_NAME": SNAPSHOTTER,
            "PLATFORM_SNAPSHOTTER_CONTAINERD_SOCKET": str(containerd.socket),
            "PLATFORM_SNAPSHOTTER_CONTAINERD_NAMESPACE": containerd.namespace,
            "PLATFORM_SNAPSHOTTER_LOG_FORMAT": "json",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Runs `serve` and waits until containerd reaches it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "snapshotter.main", "serve"],
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        until(self._listens, seconds=60, what="the snapshotter listens")
        self.containerd.find_snapshotter()

    def kill(self) -> None:
        """Ends the plugin as a crash would; who keeps the mounts lives on."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ends the plugin as an operator would; its exit code."""
        return self._end(signal.SIGTERM)

    def keeper(self) -> psutil.Process:
        return psutil.Process(int(self.control.ask("keeper")))

    def data_process(self) -> psutil.Process:
        (process,) = self.keeper().children()
        return process

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One of the snapshotter's programs."""
        return subprocess.run(
            [sys.executable, "-m", "snapshotter.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )

    def logged(self, event: str) -> list[dict[str, object]]:
        """The log's lines of that event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line[0] == "{"]
        return [line for line in lines if line["event"] == event]

    def close(self) -> None:
        """Ends everything of it, and takes its mounts away."""
        self._end(signal.SIGKILL)
        ours = [it for it in psutil.process_iter() if self._is_ours(it)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        until(lambda: not alive(ours), seconds=60, what="the keeper has ended")
        unmount_below(self.state_dir)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(60)
        self._process = None
        return code

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self.containerd.snapshotter_socket)) == 0

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            state_dir = process.environ().get("PLATFORM_SNAPSHOTTER_STATE_DIR")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return state_dir == str(self.state_dir)


@contextmanager
def running_snapshotter(
    containerd: RunningContainerd, environment: dict[str, str]
) -> Iterator[RunningSnapshotter]:
    """One that containerd reaches, ended with its mounts at the end."""
    snapshotter = RunningSnapshotter(containerd, environment)
    try:
        snapshotter.start()
        yield snapshotter
    finally:
        snapshotter.close()
