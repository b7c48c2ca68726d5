"""One run: the platform starts, is used and harmed at once, then left alone and looked at."""

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.chaos.client import INVOKE, QUESTIONS, Client, asked
from benchmarks.chaos.faults import Saboteur, small_disk
from benchmarks.chaos.load import Crowd, look
from benchmarks.chaos.operators import Operators, is_calm, spec
from benchmarks.chaos.plan import faults
from benchmarks.chaos.records import Absence, Records
from benchmarks.chaos.verdict import defects_in, violations
from control_plane.queue.redis_store import RedisJobStore, job_function
from control_plane.queue.store import Policy
from infra.contracts.job import JobState
from infra.contracts.tenancy import DEFAULT_TENANT
from tests.queue.books import check_books
from tests.support.platform import RunningPlatform

ROOT_KEY = "chaos-root-key-0123456789"
SETTLE_S = 180.0
Say = Callable[[str], None]


class Run:
    """`broken` is what did not hold, in words, once `go` has returned."""

    def __init__(self, model: Path, environment: dict[str, str], *, seed: int, say: Say) -> None:
        self._model = model
        self._environment = environment | {
            "PLATFORM_API_KEY": ROOT_KEY,
            "PLATFORM_LOG_FORMAT": "json",
        }
        self._seed = seed
        self._say = say
        self._began_at = time.monotonic()
        self._answers: dict[int, str] = {}
        self.records = Records()
        self.broken: list[str] = []

    def go(self, *, seconds: float, keep: Path | None) -> None:
        """Runs for so long and as long as it takes to settle; `keep` gets the log."""
        with tempfile.TemporaryDirectory(prefix="firstlight-chaos-") as folder:
            state_dir = Path(folder) / "state"
            with small_disk(state_dir) as disk:
                if disk is None:
                    self._tell("no file system can be mounted here: the disk will not be full")
                platform = RunningPlatform(state_dir, self._environment)
                try:
                    platform.start()
                    asyncio.run(self._use_and_harm(platform, disk, seconds))
                finally:
                    self._end(platform)
                    if keep is not None:
                        shutil.copy(platform.log, keep)

    def _end(self, platform: RunningPlatform) -> None:
        try:
            platform.stop(signal.SIGTERM)
        except AssertionError as left:
            self.broken.append(str(left))
        log = platform.log.read_text(errors="replace")
        self.broken += [f"log, {count} times: {it}" for it, count in defects_in(log).items()]

    async def _use_and_harm(
        self, platform: RunningPlatform, disk: Path | None, seconds: float
    ) -> None:
        client = Client(
            lambda: platform.url, platform.headers, self._answers, self.records.seen.append
        )
        await self._deploy(client)
        over = asyncio.Event()
        operators = Operators(client, self.records, self._model, over, self._seed)
        crowd = Crowd(client, self.records, over, seed=self._seed)
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(it) for it in (crowd.run(), operators.run())]
            await self._harm(Saboteur(platform, disk=disk, gone=self._gone), seconds)
            self._tell("no more faults")
            over.set()
            await asyncio.wait(working)
        await self._settle(platform, client, operators)
        await client.close()
        self.broken += violations(self.records, self._answers)

    def _gone(self, absence: Absence) -> None:
        self.records.absences.append(absence)

    async def _deploy(self, client: Client) -> None:
        """Deploys the model and learns the right answers before anything goes wrong."""
        sent = await client.send("PUT", "/v1/models/chat", json=spec(self._model, grace_s=2))
        assert sent.status_code == 202, sent.text
        for question in range(len(QUESTIONS)):
            response = await client.send("POST", INVOKE, json=asked(question), timeout=120)
            assert response.status_code == 200, response.text
            self._answers[question] = response.json()["output"]

    async def _harm(self, saboteur: Saboteur, seconds: float) -> None:
        until = time.monotonic() + seconds
        for peace_s, fault in faults(self._seed):
            if time.monotonic() + peace_s >= until:
                return
            await asyncio.sleep(peace_s)
            began_at = time.monotonic()
            came_of_it = await asyncio.to_thread(saboteur.do, fault)
            self._say(f"{began_at - self._began_at:7.1f} s  {fault}: {came_of_it}")

    # -- afterwards ----------------------------------------------------------------------------

    async def _settle(
        self, platform: RunningPlatform, client: Client, operators: Operators
    ) -> None:
        """Everything answers again, every job ends, and then nothing is left."""
        await self._until(lambda: is_calm(client), "requests are answered again")
        await self._until(lambda: self._all_over(client), "every job is over")
        for job in self.records.jobs.values():
            job.result = await self._result(client, job.job_id)
        for key, _ in operators.revoked:
            await operators.refused(key)
        await self._until(lambda: self._is_at_zero(client), "the model is at zero")
        shown = await client.send("GET", "/v1/models/chat")
        if (grace_s := shown.json()["spec"]["scaling"]["grace"]) not in operators.grace_s:
            self.broken.append(f"grace {grace_s} is deployed, not {operators.grace_s}")
        await self._check_counters(client)
        await self._check_store(platform)

    async def _all_over(self, client: Client) -> bool:
        going_on = [it for it in self.records.jobs.values() if not _is_over(it.states)]
        for job in going_on:
            await look(client, job, self.records)
        return all(_is_over(job.states) for job in going_on)

    async def _result(self, client: Client, job_id: str) -> str:
        found = await client.send("GET", f"/v1/jobs/{job_id}/result")
        return str(found.json()["output"]) if found.status_code == 200 else found.text

    async def _is_at_zero(self, client: Client) -> bool:
        status = (await client.send("GET", "/v1/models/chat")).json()
        counted = status["in_flight"], status["waiting"], status["desired_replicas"]
        return counted == (0, 0, 0) and not status["replicas"]

    async def _check_counters(self, client: Client) -> None:
        metrics = (await client.send("GET", "/metrics")).text
        for line in metrics.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith(("firstlight_in_flight", "firstlight_waiting")) and float(value):
                self.broken.append(f"at the end {line}")

    async def _check_store(self, platform: RunningPlatform) -> None:
        """Queue depth is the sum of the states, and no job is there that nobody left."""
        url = f"unix://{platform.state_dir}/redis/redis.sock"
        function, redis = job_function(url, Policy()), Redis.from_url(url)
        try:
            store, jobs, after = RedisJobStore(function), [], None
            while True:
                page = await store.page(
                    tenant=DEFAULT_TENANT, model=None, state=None, after=after, count=100
                )
                jobs += page.jobs
                after = page.next
                if after is None:
                    break
            await check_books(redis, jobs)
            known = {it for ids in self.records.ids_of_key.values() for it in ids}
            if unknown := [job.job_id for job in jobs if job.job_id not in known]:
                self._tell(f"{len(unknown)} jobs are kept whose 202 never arrived")
        except AssertionError as error:
            self.broken.append(f"the books of the jobs: {error}")
        finally:
            await function.close()
            await redis.aclose()

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = time.monotonic() + SETTLE_S
        while not await condition():
            if time.monotonic() > deadline:
                self.broken.append(f"after {SETTLE_S:.0f} s still not: {what}")
                return
            await asyncio.sleep(0.3)
        self._tell(what)

    def _tell(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._began_at:7.1f} s  {line}")


def _is_over(states: list[JobState]) -> bool:
    return bool(states) and states[-1].is_over
