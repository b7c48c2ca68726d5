import asyncio
import os
import signal
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from control_plane.deployments.record import Record
from control_plane.deployments.redis_store import RedisDeploymentStore
from infra.backoff import Backoff
from infra.contracts.base import ModelName
from infra.errors import Conflict, DependencyMissing, StoreUnavailable
from infra.redis import EmbeddedRedis, connect, find_server
from tests.deployments.test_store import publish
from tests.fleet.makers import a_draft

pytestmark = pytest.mark.real


async def names(store: RedisDeploymentStore) -> list[str]:
    """Of all revisions in traffic."""
    return [it.name for kept in await store.load() for it in kept.revisions]


async def test_what_was_deployed_survives_a_killed_server_and_a_restart(tmp_path: Path):
    async with EmbeddedRedis(tmp_path) as server:
        redis = connect(server.url)
        store = RedisDeploymentStore(redis)
        await publish(store, a_draft())
        first_pid = server.pid
        assert first_pid is not None
        os.kill(first_pid, signal.SIGKILL)
        await publish(store, a_draft("other"))  # retried while the server comes back
        assert server.pid != first_pid
        assert await names(store) == ["chat@1", "other@1"]
        await redis.aclose()
    async with EmbeddedRedis(tmp_path) as server:
        redis = connect(server.url)
        assert await names(RedisDeploymentStore(redis)) == ["chat@1", "other@1"]
        await redis.aclose()


async def test_a_record_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path):
    async with EmbeddedRedis(tmp_path) as server:
        redis = connect(server.url)
        store = RedisDeploymentStore(redis)
        await publish(store, a_draft())
        await publish(store, a_draft("hollow"))
        await redis.hset("{firstlight}:releases", "broken", "1 {}")
        await redis.hset("{firstlight}:releases", "worse", "x")
        await redis.hset("{firstlight}:revisions:hollow", "1", "{}")
        assert await names(store) == ["chat@1"]
        for name in ("broken", "worse"):
            with pytest.raises(StoreUnavailable, match="cannot be read"):
                await store.read(ModelName(name))
            with pytest.raises(Conflict):
                await store.write(Record(model=ModelName(name), generation=1))
        await redis.aclose()


async def test_models_of_another_layout_are_refused_by_name_and_not_taken_for_none(tmp_path: Path):
    async with EmbeddedRedis(tmp_path) as server:
        redis = connect(server.url)
        store = RedisDeploymentStore(redis)
        await publish(store, a_draft())
        assert await names(store) == ["chat@1"]

        await redis.set("{firstlight}:layout", "3")
        with pytest.raises(Conflict, match="layout 3, this version reads layout 2"):
            await store.load()

        await redis.delete("{firstlight}:layout")
        await redis.hset("{firstlight}:current", "old", "1 {}")
        with pytest.raises(Conflict, match="deployed by an earlier version"):
            await store.load()

        await redis.delete("{firstlight}:current")
        assert await names(store) == ["chat@1"]
        await redis.aclose()


async def test_the_server_is_private_and_ends_with_its_owner(tmp_path: Path):
    folder = tmp_path / "redis"
    async with EmbeddedRedis(folder) as server:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
        pid = server.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_server_dies_with_a_killed_owner(tmp_path: Path):
    script = (
        "import asyncio, sys; from pathlib import Path; from infra.redis import EmbeddedRedis\n"
        "async def main():\n"
        "    async with EmbeddedRedis(Path(sys.argv[1])) as server:\n"
        "        sys.stderr.write(f'{server.pid}\\n'); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        str(tmp_path),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert owner.stderr is not None
    pid = int(await owner.stderr.readline())
    owner.kill()
    await owner.wait()
    for _ in range(200):
        if not _is_running(pid):
            break
        await asyncio.sleep(0.01)
    assert not _is_running(pid)


async def test_a_folder_belongs_to_one_platform(tmp_path: Path):
    async with EmbeddedRedis(tmp_path):
        with pytest.raises(Conflict) as refusal:
            await EmbeddedRedis(tmp_path).__aenter__()
        assert "another platform runs on" in refusal.value.detail
    async with EmbeddedRedis(tmp_path):
        pass


async def test_a_folder_that_cannot_be_written_is_said_to_be(tmp_path: Path):
    (tmp_path / "lock").mkdir()  # as a read-only file system does, for root too
    with pytest.raises(Conflict, match="cannot write in") as refusal:
        await EmbeddedRedis(tmp_path).__aenter__()
    assert refusal.value.hint == "set PLATFORM_STATE_DIR to another folder"


async def test_a_deep_folder_still_gets_a_socket(tmp_path: Path):
    folder = tmp_path.joinpath(*["a-rather-long-folder-name"] * 5)
    async with EmbeddedRedis(folder) as server:
        redis = connect(server.url)
        assert await redis.ping()
        await redis.aclose()
        socket_folder = Path(server.url.removeprefix("unix://")).parent
    assert not socket_folder.exists()


async def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    with pytest.raises(StoreUnavailable) as refusal:
        async with EmbeddedRedis(tmp_path, server=Path("/bin/false")):
            pass
    assert "exited 1" in refusal.value.detail
    assert refusal.value.hint is not None and "MiB are free" in refusal.value.hint
    (tmp_path / "appendonlydir").write_text("this should be a folder")
    with pytest.raises(StoreUnavailable):
        async with EmbeddedRedis(tmp_path):
            pass


@dataclass(frozen=True)
class Noted(Backoff):
    """Waits no longer than is good for a test, and tells after how many failures."""

    told: "asyncio.Queue[int]" = field(default_factory=asyncio.Queue)

    def delay_s(self, failures: int, *, jitter: float = 0.0) -> float:
        self.told.put_nowait(failures)
        return 0.01


async def test_a_server_that_ends_again_and_again_is_started_ever_more_seldom(tmp_path: Path):
    backoff = Noted()
    with capture_logs() as logs:
        async with EmbeddedRedis(tmp_path, backoff=backoff) as server:
            for failures in (2, 3, 4):
                pid = server.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                assert await backoff.told.get() == failures
    ends = [entry for entry in logs if entry["event"] == "redis.ended"]
    assert len(ends) == 3 and all("eady to accept connections" in it["last_words"] for it in ends)


async def test_a_store_that_is_not_there_is_unavailable(tmp_path: Path):
    redis = connect(f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(StoreUnavailable):
        await RedisDeploymentStore(redis).load()
    await redis.aclose()


def test_a_machine_without_any_server_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert find_server().name == "valkey-server"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DependencyMissing) as missing:
        find_server()
    assert missing.value.hint is not None and "PLATFORM_REDIS_URL" in missing.value.hint


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
