"""The platform on a Redis that somebody else runs, in a state folder that does not exist yet."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.platform import RunningPlatform
from tests.support.processes import require, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def test_models_live_in_the_external_redis(
    environment: dict[str, str], smollm2_dir: Path, tmp_path: Path
) -> None:
    require(shutil.which("redis-server"), "redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", tmp_path],
        stdout=subprocess.DEVNULL,
    )
    try:
        redis = {"PLATFORM_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        first = RunningPlatform(tmp_path / "first", environment | redis)
        first.start()
        first.deploy("chat", smollm2_dir)
        assert not first.named("redis")
        first.stop()

        second = RunningPlatform(tmp_path / "second", environment | redis)
        second.start()

        assert second.status("chat")["revision"] == "chat@1"
        body = {"prompt": "Hello", "max_tokens": 1}
        assert second.client.post("/v1/models/chat/invoke", json=body).status_code == 200
        asynchronously = {"prefer": "respond-async"}
        left = second.client.post("/v1/models/chat/invoke", json=body, headers=asynchronously)
        job = left.headers["location"]
        until(
            lambda: second.client.get(job).json()["state"] == "succeeded",
            seconds=30,
            what="a job is done",
        )
        second.stop()
        log = (tmp_path / "second.log").read_text()
        assert "jobs.not-durable" in log and "appendonly is no, not yes" in log
    finally:
        server.kill()
        server.wait()
