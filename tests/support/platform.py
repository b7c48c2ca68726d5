"""A real `platform up` in its own process and state folder, for the journey tests."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.complaints import complaints
from tests.support.processes import alive, called, descendants, until


class RunningPlatform:
    """Starts, talks to, kills and restarts one platform, with its PLATFORM_API_KEY if any."""

    def __init__(self, state_dir: Path, environment: dict[str, str]) -> None:
        self.state_dir = state_dir
        self.log = state_dir.with_name(f"{state_dir.name}.log")
        key = environment.get("PLATFORM_API_KEY")
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._environment = environment
        self._seen: list[psutil.Process] = []

    def start(self, *, until_ready: bool = True) -> None:
        """Runs `platform up` on a free port and waits until it is ready, or only answers."""
        self.launch()
        endpoint = self.state_dir / "endpoint.json"
        until(
            lambda: self._announced(endpoint) or self.process.poll() is not None,
            seconds=30,
            what="platform up announces its address",
        )
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        self.url = json.loads(endpoint.read_text())["url"]
        self.client = httpx.Client(base_url=self.url, headers=self.headers, timeout=60)
        if until_ready:
            until(self.is_ready, seconds=30, what="platform is ready")

    def launch(self) -> None:
        """Begins to start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "control_plane.main", "up", "--port", "0"],
                env=self._environment | {"PLATFORM_STATE_DIR": str(self.state_dir)},
                stdout=log,
                stderr=log,
            )

    def is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def deploy(self, name: str, source: Path, **sections: Any) -> None:
        """Deploys a model from a folder."""
        response = self.client.put(
            f"/v1/models/{name}", json={"name": name, "source": f"file://{source}", **sections}
        )
        assert response.status_code == 202, response.text

    def status(self, name: str) -> dict[str, Any]:
        response = self.client.get(f"/v1/models/{name}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def cold_starts(self, name: str, last: int = 100) -> list[dict[str, Any]]:
        response = self.client.get(f"/v1/models/{name}/coldstarts", params={"last": last})
        assert response.status_code == 200, response.text
        return list(response.json()["data"])

    def until_idle(self, name: str, *, seconds: float = 60) -> None:
        """Waits until the model has no replica and nothing in flight or waiting."""
        until(lambda: self._is_idle(name), seconds=seconds, what=f"{name} is at zero")

    def until_standby(self, *, seconds: float = 60) -> None:
        """Waits until a worker is parked on the runtime rung."""
        until(lambda: self.parked() > 0, seconds=seconds, what="a standby worker is parked")

    def until_asleep(self, *, seconds: float = 60) -> None:
        """Waits until a worker sleeps on the weights rung."""
        until(self.sleepers, seconds=seconds, what="a worker sleeps")

    def parked(self) -> int:
        return sum(node["standby_ready"] for node in self._nodes())

    def sleepers(self) -> list[dict[str, Any]]:
        """What nodes say of workers that sleep."""
        return [sleeper for node in self._nodes() for sleeper in node["sleepers"]]

    def _nodes(self) -> list[dict[str, Any]]:
        return list(self.client.get("/v1/nodes").json()["data"])

    def processes(self) -> list[psutil.Process]:
        """Everything that runs below `platform up` now, remembered for `stop`."""
        self._seen += [p for p in descendants(self.process.pid) if p not in self._seen]
        return descendants(self.process.pid)

    def named(self, kind: str) -> list[psutil.Process]:
        """Its processes of one kind: `redis`, or the name they gave themselves (fl-node, …)."""
        below = self.processes()
        if kind == "redis":
            return called(below, "redis-server")
        return called(below, kind)

    def restart(self, how: signal.Signals) -> None:
        """Ends the platform, with nothing left of it, and starts it again."""
        self.stop(how)
        self.start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends the platform; nothing of it may be left, however it ended."""
        self.processes()
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(timeout=90)
        until(lambda: not alive(self._seen), seconds=60, what="no process left behind")
        (self.state_dir / "endpoint.json").unlink(missing_ok=True)

    def complaints(self, since: int) -> list[str]:
        """What it logged above info, from that byte of its log on."""
        return complaints(self.log.read_bytes()[since:].decode())

    def _announced(self, endpoint: Path) -> bool:
        return endpoint.exists() and json.loads(endpoint.read_text())["pid"] == self.process.pid

    def _is_idle(self, name: str) -> bool:
        status = self.status(name)
        return (
            not status["replicas"]
            and status["in_flight"] == 0
            and status["waiting"] == 0
            and status["desired_replicas"] == 0
        )


@contextmanager
def running_platform(environment: dict[str, str]) -> Iterator[RunningPlatform]:
    """A started platform that is stopped, and checked for leftovers, at the end."""
    with tempfile.TemporaryDirectory(prefix="firstlight-") as folder:
        platform = RunningPlatform(Path(folder) / "state", environment)
        platform.start()
        try:
            yield platform
        finally:
            platform.stop()
