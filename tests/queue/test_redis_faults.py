"""What Redis may do: refuse, stall, die and come back. No accepted job is lost."""

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from control_plane.queue.answers import Answers
from control_plane.queue.dispatcher import Dispatcher
from control_plane.queue.executor import Answered, Failed
from control_plane.queue.job import Job
from control_plane.queue.meters import JobMeters
from control_plane.queue.redis_store import BASE, RedisJobStore, Run, job_function
from control_plane.queue.store import JobStore, Policy
from infra.clock import SystemClock
from infra.contracts.base import JobId, ModelName
from infra.contracts.job import JobState
from infra.errors import StoreUnavailable
from infra.metrics import Metrics
from infra.objectstore.memory import MemoryObjects
from infra.redis import EmbeddedRedis, connect, durability_doubt
from infra.redis_function import Argument
from infra.supervise import TaskSet
from tests.queue.books import check_books
from tests.queue.makers import CHAT, NOBODY, a_job, accept

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]


class Echo:
    """An executor that answers with the job's id after a moment."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds = seconds
        self._begun = asyncio.Semaphore(0)
        self.executed: list[JobId] = []

    def room(self, model: ModelName, running: int) -> int:
        return 8 - running

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(30):
            for _ in range(count):
                await self._begun.acquire()

    async def run(self, job: Job, body: bytes) -> Answered | Failed:
        self._begun.release()
        await asyncio.sleep(self.seconds)
        self.executed.append(job.job_id)
        return Answered(200, "text/plain", job.job_id.encode())


class DoneAndDenied:
    """Of one call in seven, all made, the caller hears that it failed."""

    def __init__(self, run: Run, dice: random.Random) -> None:
        self._run = run
        self._dice = dice

    async def __call__(self, arguments: Sequence[Argument], *, reads: bool = False) -> Any:
        reply = await self._run(arguments, reads=reads)
        if self._dice.randrange(7) == 0:
            raise StoreUnavailable("no reply came")
        return reply


@dataclass
class Setting:
    server: EmbeddedRedis
    redis: Redis
    run: Run
    store: JobStore
    tasks: TaskSet
    meters: JobMeters

    def work(self, executor: Echo, owner: str = "local") -> "asyncio.Task[None]":
        """A process that takes jobs; cancelling it is its death."""
        dispatcher = Dispatcher(
            self.store,
            Answers(self.store, MemoryObjects()),
            executor,
            self.meters,
            owner=owner,
            clock=SystemClock.start(),
            is_leading=lambda: True,
        )
        return self.tasks.start(dispatcher.run(), name=owner)

    async def accept(self, number: int) -> JobId:
        now = SystemClock.start().now()
        job = a_job(number, created_at=now, updated_at=now, deadline_at=now + 600)
        await accept(self.store, job, now=now)
        return job.job_id

    async def accept_until_told(self, number: int) -> JobId:
        """The same job again, until it is known to be there."""
        while True:
            try:
                return await self.accept(number)
            except StoreUnavailable:
                await asyncio.sleep(0.05)

    async def until_all_succeeded(self, count: int) -> None:
        """They have, and the books say so, too."""
        async with asyncio.timeout(55):
            while True:
                try:
                    counts = dict(await self.store.counts())
                except StoreUnavailable:
                    counts = {}
                if counts == {(CHAT, JobState.SUCCEEDED): count}:
                    break
                await asyncio.sleep(0.05)
        job_ids = [it.decode() for it in await self.redis.zrange(f"{BASE}:of:{NOBODY}", 0, -1)]
        jobs = [await RedisJobStore(self.run).get(JobId(it), tenant=NOBODY) for it in job_ids]
        assert len(jobs) == count
        await check_books(self.redis, [job for job in jobs if job is not None])


@pytest.fixture
def lease_s() -> float:
    return 3


@pytest.fixture
async def setting(tmp_path: Path, lease_s: float) -> AsyncIterator[Setting]:
    async with set_up(tmp_path, lease_s) as setting:
        yield setting


@asynccontextmanager
async def set_up(folder: Path, lease_s: float) -> AsyncIterator[Setting]:
    async with EmbeddedRedis(folder) as server:
        redis = connect(server.url)
        policy = Policy(lease_s=lease_s)
        script = job_function(server.url, policy)
        store = RedisJobStore(script, policy)
        setting = Setting(server, redis, script, store, TaskSet(), JobMeters.on(Metrics()))
        yield setting
        await setting.tasks.close()
        await script.close()
        await redis.aclose()


async def test_the_embedded_server_writes_through_to_the_disk(setting: Setting):
    assert await durability_doubt(setting.redis) is None
    await setting.redis.config_set("appendfsync", "everysec")
    assert await durability_doubt(setting.redis) == "appendfsync is everysec, not always"


@pytest.mark.parametrize(
    ("name", "broken", "whole"),
    [
        ("maxmemory", "1", "0"),  # OOM
        ("min-replicas-to-write", "1", "0"),  # NOREPLICAS, as READONLY: a write that is refused
    ],
)
async def test_a_store_that_refuses_writes_keeps_what_it_has_and_goes_on(
    setting: Setting, name: str, broken: str, whole: str
):
    executor = Echo(0.5)
    setting.work(executor)
    accepted = [await setting.accept(number) for number in range(4)]
    await executor.until_begun(4)  # they run now, and cannot be finished
    await setting.redis.config_set(name, broken)
    with pytest.raises(StoreUnavailable):
        await setting.accept(9)
    await asyncio.sleep(1)
    assert await setting.store.get(a_job(9).job_id, tenant=NOBODY) is None, "refused is refused"
    before = await setting.store.counts()
    assert before == {(CHAT, JobState.RUNNING): 4}
    await setting.redis.config_set(name, whole)
    await setting.until_all_succeeded(4)
    assert sorted(executor.executed) == sorted(accepted), "once each"


async def test_a_read_only_replica_refuses_in_a_typed_way(setting: Setting):
    executor = Echo(0.5)
    setting.work(executor)
    first = await setting.accept(1)
    await executor.until_begun(1)  # it runs now, and cannot be finished
    await setting.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable, match="READONLY"):
        await setting.accept(2)
    await asyncio.sleep(1)
    kept = await setting.store.get(first, tenant=NOBODY)
    assert kept is not None and kept.state is JobState.RUNNING
    await setting.redis.execute_command("REPLICAOF", "NO", "ONE")
    second = await setting.accept(2)
    await setting.until_all_succeeded(2)
    assert executor.executed == [first, second], "once each"


async def test_a_disk_that_refuses_snapshots_refuses_jobs(setting: Setting, tmp_path: Path):
    """MISCONF: something else is where the snapshot goes."""
    await setting.redis.config_set("save", "1 1")
    (tmp_path / "dump.rdb").mkdir()
    accepted = []
    with pytest.raises(StoreUnavailable, match="MISCONF"):
        async with asyncio.timeout(50):
            for number in range(1000):
                accepted.append(await setting.accept(number))
                await asyncio.sleep(0.1)
    executor = Echo()
    setting.work(executor)  # it can be given nothing
    await asyncio.sleep(0.3)
    assert dict(await setting.store.counts()) == {(CHAT, JobState.QUEUED): len(accepted)}
    await setting.redis.config_set("save", "")
    await setting.redis.config_set("stop-writes-on-bgsave-error", "no")
    accepted.append(await setting.accept(1001))
    await setting.until_all_succeeded(len(accepted))
    assert sorted(executor.executed) == sorted(accepted), "once each"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder))
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


async def test_jobs_live_through_a_full_disk(small_disk: Path, lease_s: float):
    """Redis ends rather than answer what it could not write."""
    async with set_up(small_disk / "redis", lease_s) as setting:
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        number = 0
        with pytest.raises(StoreUnavailable):
            while True:  # the last page of its file has room for a few
                await setting.accept(number)
                number += 1
        executor = Echo()
        setting.work(executor)  # it can be given nothing
        await asyncio.sleep(0.5)
        assert executor.executed == []
        filler.unlink()
        await setting.accept_until_told(number)
        await setting.until_all_succeeded(number + 1)
        assert len(executor.executed) == number + 1, "once each"


async def test_jobs_live_through_kills_of_the_server(setting: Setting):
    executor = Echo()
    setting.work(executor)
    accepted = set()
    for number in range(60):
        if number % 20 == 10:
            pid = setting.server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        accepted.add(await setting.accept_until_told(number))
    await setting.until_all_succeeded(60)
    for job_id in accepted:
        assert await setting.store.answer(job_id, tenant=NOBODY) == job_id.encode()


async def test_jobs_that_somebody_took_away_do_not_keep_the_others_waiting(setting: Setting):
    """A server that evicts, or an operator's DEL."""
    executor = Echo(0.5)
    working = setting.work(executor)
    gone = [await setting.accept(number) for number in range(1, 17)]  # half run, half wait
    await asyncio.sleep(0.2)
    working.cancel()
    for job_id in gone:
        await setting.redis.delete(f"{BASE}:job:{job_id}")
    setting.work(executor)
    kept = [await setting.accept(number) for number in range(20, 24)]
    for _ in range(400):
        if set(kept) <= set(executor.executed):
            break
        await asyncio.sleep(0.05)
    now = SystemClock.start().now()
    page = await setting.store.page(tenant=NOBODY, model=None, state=None, after=None, count=99)
    assert {job.job_id for job in page.jobs} == set(kept)
    late = now + 100 * 24 * 3600
    await setting.store.reclaim(now=late)
    await setting.store.expire(now=late)
    assert len(await setting.store.forgettable(now=late)) == 4
    assert await setting.store.take_webhooks(9, now=late) == ()


async def test_a_store_that_stalls_for_ten_seconds_loses_nothing(setting: Setting):
    """Longer than a lease, and than a reply is waited for: what was asked meanwhile may be done."""
    executor = Echo(11.5)  # what runs outlives the stall
    setting.work(executor)
    accepted = [await setting.accept(number) for number in range(4)]
    await executor.until_begun(4)
    executor.seconds = 0.02
    pid = setting.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        asked = asyncio.create_task(setting.accept(4))
        await asyncio.sleep(10)
        with pytest.raises(StoreUnavailable):
            await asked
    finally:
        os.kill(pid, signal.SIGCONT)
    await setting.accept_until_told(4)
    await setting.until_all_succeeded(5)
    jobs = [await setting.store.get(job_id, tenant=NOBODY) for job_id in accepted]
    assert [job and job.attempt for job in jobs] == [1] * 4, "what its owner runs is not run again"
    assert len(executor.executed) == 5


async def test_what_is_done_and_said_to_have_failed_is_done_once(setting: Setting):
    setting.store = RedisJobStore(DoneAndDenied(setting.run, random.Random(7)))
    executor = Echo()
    setting.work(executor)
    accepted = [await setting.accept_until_told(number) for number in range(24)]
    await setting.until_all_succeeded(24)
    assert sorted(executor.executed) == sorted(accepted), "once each"
    for _ in range(400):  # the last one may have to ask again what became of its answer
        if setting.meters.executions.value(CHAT, "answered") == 24:
            break
        await asyncio.sleep(0.05)
    answered, twice = setting.meters.executions, setting.meters.duplicates
    assert (answered.value(CHAT, "answered"), twice.value(CHAT)) == (24, 0), "each owner knows"


@pytest.mark.parametrize("lease_s", [3600])
async def test_what_a_dead_process_ran_is_taken_up_by_the_next_of_its_name_at_once(
    setting: Setting,
):
    busy = Echo(30)
    first = setting.work(busy)
    for number in range(4):
        await setting.accept(number)
    await busy.until_begun(4)
    first.cancel()
    setting.work(Echo())
    await setting.until_all_succeeded(4)


async def test_of_two_processes_the_living_takes_over_from_the_dead(setting: Setting):
    busy = Echo(30)
    dead = setting.work(busy, "one")
    for number in range(4):
        await setting.accept(number)
    await busy.until_begun(4)
    dead.cancel()
    setting.work(Echo(), "two")
    await setting.until_all_succeeded(4)
