"""What is looked at when nothing goes wrong any more: all has an end, and nothing is left."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.chaos.client import Client, answer_in
from benchmarks.chaos.load import look
from benchmarks.chaos.operators import Operators, is_calm
from benchmarks.chaos.records import JobSeen, Records
from control_plane.queue.job import Job
from control_plane.queue.redis_store import RedisJobStore, job_function
from control_plane.queue.store import Policy
from infra.contracts.job import JobState
from infra.contracts.tenancy import TenantName
from tests.queue.books import check_books

SETTLE_S = 240.0  # and the fifth call of a webhook comes within two minutes


@dataclass
class Aftermath:
    """`client` is an admin's, `jobs` the one whose jobs they are."""

    client: Client
    jobs: Client
    operators: Operators
    records: Records
    tell: Callable[[str], None]
    broken: list[str] = field(default_factory=list)

    async def settle(self, state_dir: Path, *, tenant: str) -> list[str]:
        """Waits until everything has settled; returns what did not, and what is left, in words."""
        await self._until(lambda: is_calm(self.client), "requests are answered again")
        await self._until_all_over()
        for job in self.records.jobs.values():
            if job.states and job.states[-1] in {JobState.SUCCEEDED, JobState.FAILED}:
                await self._fetch(job)
        for key, _ in self.operators.revoked:
            await self.operators.refused(key)
        await self._until(self._is_at_zero, "the model is at zero")
        await self._check_traffic()
        await self._check_counters()
        await self._read_the_bill(tenant)
        await self._check_store(state_dir, tenant)
        return self.broken

    async def _until_all_over(self) -> None:
        """However long it takes, as long as they go on to end."""
        left = list(self.records.jobs.values())

        async def has_one_ended() -> bool:
            for job in left:
                await look(self.jobs, job, self.records)
            ended = [job for job in left if job.is_done]
            left[:] = [job for job in left if not job.is_done]
            return bool(ended)

        while left:
            if not await self._wait(has_one_ended, f"one of {len(left)} jobs is over"):
                return
        self.tell("every job is over")

    async def _fetch(self, job: JobSeen) -> None:
        found = await self.jobs.send("GET", f"/v1/jobs/{job.job_id}/result")
        job.result = found.text
        if found.status_code == 200:
            body = found.json()
            usage = body["usage"]
            job.tokens = usage["prompt_tokens"] + usage["completion_tokens"]
            job.result = answer_in(body)

    async def _is_at_zero(self) -> bool:
        status = (await self.client.send("GET", "/v1/models/chat")).json()
        counted = status["in_flight"], status["waiting"], status["desired_replicas"]
        return counted == (0, 0, 0) and not status["replicas"]

    async def _check_traffic(self) -> None:
        """Requests go where the last change that was confirmed sends them."""
        shown = await self.client.send("GET", "/v1/models/chat/traffic")
        shares = {it["revision"]: it["percent"] for it in shown.json()["traffic"]}
        if self.operators.traffic not in (None, shares):
            self.broken.append(f"requests go to {shares}, not to {self.operators.traffic}")

    async def _check_counters(self) -> None:
        metrics = (await self.client.send("GET", "/metrics")).text
        for line in metrics.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith(("firstlight_in_flight", "firstlight_waiting")) and float(value):
                self.broken.append(f"at the end {line}")

    async def _read_the_bill(self, tenant: str) -> None:
        rows = (await self.client.send("GET", "/v1/usage")).json()["data"]
        self.records.billed_tokens = sum(
            row["prompt_tokens"] + row["completion_tokens"]
            for row in rows
            if row["tenant"] == tenant
        )

    async def _check_store(self, state_dir: Path, tenant: str) -> None:
        """The books agree with the jobs, and with what was said of them."""
        url = f"unix://{state_dir}/redis/redis.sock"
        function, redis = job_function(url, Policy()), Redis.from_url(url)
        try:
            jobs = await _all_jobs(RedisJobStore(function), TenantName(tenant))
            await check_books(redis, jobs)
            known = {it for ids in self.records.ids_of_key.values() for it in ids}
            if unknown := [job.job_id for job in jobs if job.job_id not in known]:
                self.tell(f"{len(unknown)} jobs are kept whose 202 never arrived")
        except AssertionError as error:
            self.broken.append(f"the books of the jobs: {error}")
        finally:
            await function.close()
            await redis.aclose()

    async def _wait(self, condition: Callable[[], Awaitable[bool]], what: str) -> bool:
        deadline = time.monotonic() + SETTLE_S
        while not await condition():
            if time.monotonic() > deadline:
                self.broken.append(f"after {SETTLE_S:.0f} s still not: {what}")
                return False
            await asyncio.sleep(0.3)
        return True

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        if await self._wait(condition, what):
            self.tell(what)


async def _all_jobs(store: RedisJobStore, tenant: TenantName) -> list[Job]:
    jobs: list[Job] = []
    after = None
    while True:
        page = await store.page(tenant=tenant, model=None, state=None, after=after, count=100)
        jobs += page.jobs
        after = page.next
        if after is None:
            return jobs
