"""The platform on what MemoryDB is to its clients: one shard of a cluster that tells no secrets."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from infra.redis import find_server
from tests.support.platform import RunningPlatform
from tests.support.processes import until

pytestmark = pytest.mark.real

KEY = "an-admin-s-key-of-tests"
PASSWORD = "a-password-of-tests-only"
# As terraform/modules/state gives it to its user.
RIGHTS = ("~*", "&*", "+@all", "-@dangerous", "+info")


@pytest.fixture
def url(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> Iterator[str]:
    port, bus = unused_tcp_port_factory(), unused_tcp_port_factory()
    folder = tmp_path / "store"
    folder.mkdir()
    options = ["--cluster-enabled", "yes", "--appendonly", "yes", "--appendfsync", "always"]
    server = subprocess.Popen(
        [find_server(), "--port", str(port), "--cluster-port", str(bus), "--dir", folder, *options],
        stdout=subprocess.DEVNULL,
    )
    admin = redis.Redis(port=port, socket_connect_timeout=1)
    try:
        until(lambda: _answers(admin), seconds=10, what="the store answers")
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        admin.execute_command("ACL", "SETUSER", "firstlight", "on", f">{PASSWORD}", *RIGHTS)
        until(
            lambda: b"cluster_state:ok" in admin.execute_command("CLUSTER", "INFO"),
            seconds=10,
            what="the shard has all slots",
        )
        yield f"redis://firstlight:{PASSWORD}@127.0.0.1:{port}/0"
    finally:
        admin.close()
        server.terminate()
        server.wait()


def _answers(admin: redis.Redis) -> bool:
    try:
        return bool(admin.ping())
    except redis.exceptions.RedisError:
        return False


def test_jobs_and_models_live_in_one_shard_whose_configuration_nobody_may_read(
    url: str, tmp_path: Path, smollm2_dir: Path, environment: dict[str, str]
) -> None:
    told = {
        "PLATFORM_REDIS_URL": url,
        "PLATFORM_REDIS_DURABLE": "true",
        "PLATFORM_CAPACITY": "none",
        "PLATFORM_API_KEY": KEY,
    }
    platform = RunningPlatform(tmp_path / "platform", environment | told)
    platform.start()
    try:
        platform.deploy("chat", smollm2_dir)
        accepted = platform.client.post(
            "/v1/models/chat/invoke", json={"prompt": "x"}, headers={"Prefer": "respond-async"}
        )
        assert accepted.status_code == 202, accepted.text
        platform.client.post("/v1/keys", json={"name": "app", "tenant": "acme"}).raise_for_status()
        assert platform.client.get("/v1/usage").status_code == 200
    finally:
        platform.stop()

    assert "jobs.not-durable" not in platform.log.read_text()
