"""A private docker-registry in its own process and folder."""

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.tether import tethered
from tests.support.processes import require, until


class RunningRegistry:
    """Starts, stops and restarts one registry, which keeps its address and its images."""

    def __init__(self, folder: Path) -> None:
        require(shutil.which("docker-registry"), "docker-registry")
        self.log = folder / "registry.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._config = folder / "registry.json"  # JSON is YAML
        storage = {"filesystem": {"rootdirectory": str(folder / "registry")}}
        settings = {"version": "0.1", "storage": storage, "http": {"addr": self.address}}
        self._config.write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Runs it and waits until it answers."""
        with self.log.open("ab") as log:
            command = tethered("docker-registry", "serve", str(self._config))
            quiet = {"OTEL_TRACES_EXPORTER": "none"}
            environment = dict(os.environ) | quiet  # noqa: TID251 - what children inherit
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until(self._answers, seconds=60, what="the registry answers")

    def stop(self) -> None:
        """Ends it; what was pushed stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def running_registry(folder: Path) -> Iterator[RunningRegistry]:
    """A registry that answers, ended at the end."""
    registry = RunningRegistry(folder)
    try:
        registry.start()
        yield registry
    finally:
        registry.stop()
