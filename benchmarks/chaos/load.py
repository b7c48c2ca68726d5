"""A crowd of clients: those who wait, who stream, who leave, who read slowly, and jobs."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from benchmarks.chaos.client import LARGE, QUESTIONS, Client, asked, pause
from benchmarks.chaos.records import JobSeen, Records
from infra.contracts.job import JobState

PATIENT = 4  # clients, each with one request after the other
JOB_LEAVERS = 3
MOST_JOBS = 80  # left and not known to be over: a slow machine is not to be judged by its speed
_FLOOD_S, _EBB_S = (8.0, 20.0), (3.0, 7.0)  # in an ebb the model goes back to zero
_AGAIN_S = 0.1


class Crowd:
    """Begins requests until it is `over`; what it sees is in `records`.

    `jobs` is the client of another tenant; the ends of some of its jobs are told to `hook`.
    """

    def __init__(
        self,
        client: Client,
        jobs: Client,
        records: Records,
        over: asyncio.Event,
        *,
        hook: str,
        seed: int,
    ) -> None:
        self._client = client
        self._jobs = jobs
        self._hook = hook
        self._records = records
        self._over = over
        self._seed = seed
        self._flood = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            clients.create_task(self._tide(random.Random(f"{self._seed} tide")))
            for number in range(PATIENT):
                self._start(clients, self._one_request, f"{self._seed} patient {number}")
            for number in range(JOB_LEAVERS):
                self._start(clients, self._one_job, f"{self._seed} jobs {number}")
            self._start(clients, self._look_at_jobs, f"{self._seed} looks")

    def _start(
        self,
        clients: asyncio.TaskGroup,
        step: Callable[[random.Random], Coroutine[Any, Any, None]],
        seed: str,
    ) -> None:
        async def work() -> None:
            dice = random.Random(seed)
            while not self._over.is_set():
                await self._flood.wait()
                await step(dice)

        clients.create_task(work())

    async def _tide(self, dice: random.Random) -> None:
        while not self._over.is_set():
            self._flood.set()
            await pause(self._over, dice.uniform(*_FLOOD_S))
            self._flood.clear()
            await pause(self._over, dice.uniform(*_EBB_S))
        self._flood.set()

    async def _one_request(self, dice: random.Random) -> None:
        client, question = self._client, dice.randrange(LARGE)
        match dice.randrange(10):
            case 0 | 1 | 2:
                await client.ask(question)
            case 3 | 4 | 5:
                await client.stream(question)
            case 6:
                await client.stream(question, leaves_after=dice.randrange(12))
            case 7 | 8:
                await client.leave(question, after_s=dice.uniform(0, 1.5))
            case _:
                await client.read_slowly(question, pause_s=dice.uniform(0, 0.1))
        await asyncio.sleep(dice.uniform(0, 0.5))

    # -- jobs ----------------------------------------------------------------------------------

    async def _one_job(self, dice: random.Random) -> None:
        """Leaves a job under a key, at times twice; at times it is cancelled."""
        if sum(not job.is_done for job in self._records.jobs.values()) > MOST_JOBS:
            await pause(self._over, 1)
            return
        question, key = dice.choice(QUESTIONS), f"key-{dice.getrandbits(48):x}"
        headers = {"prefer": "respond-async", "idempotency-key": key}
        if is_told := dice.random() < 0.3:
            headers["firstlight-webhook"] = self._hook
        for _ in range(2 if dice.random() < 0.2 else 1):
            job_id = await self._leave(question, headers)
            if job_id is None:
                return
            self._records.ids_of_key.setdefault(key, set()).add(job_id)
            self._records.jobs.setdefault(job_id, JobSeen(job_id, question, is_told=is_told))
        if dice.random() < 0.15:
            await asyncio.sleep(dice.uniform(0, 2))
            await self._cancel(self._records.jobs[job_id])
        await asyncio.sleep(dice.uniform(0.1, 0.8))

    async def _leave(self, question: int, headers: dict[str, str]) -> str | None:
        """Sends the job until it has its 202, or until all is over."""
        path, body = asked(question)
        while not self._over.is_set():
            try:
                sent = await self._jobs.send("POST", path, json=body, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(_AGAIN_S)
                continue
            if sent.status_code == 202:
                return str(sent.json()["id"])
            if sent.status_code not in {429, 503}:
                self._records.wrongs.append(f"a job was answered {sent.status_code}: {sent.text}")
                return None
            await asyncio.sleep(_AGAIN_S)
        return None

    async def _cancel(self, job: JobSeen) -> None:
        while True:
            try:
                sent = await self._jobs.send("DELETE", f"/v1/jobs/{job.job_id}")
            except httpx.TransportError:
                await asyncio.sleep(_AGAIN_S)
                continue
            match sent.status_code:
                case 200:
                    job.is_cancelled = True
                    job.states.append(JobState(sent.json()["state"]))
                    return
                case 409:  # it was over before
                    return
                case 503:
                    await asyncio.sleep(_AGAIN_S)
                case _:
                    self._records.wrongs.append(f"a cancel was answered {sent.text}")
                    return

    async def _look_at_jobs(self, dice: random.Random) -> None:
        """Looks at a few jobs, also at some that are over: an end is an end."""
        known = list(self._records.jobs.values())
        for job in [job for job in known if not job.is_done][:10]:
            await look(self._jobs, job, self._records)
        for job in dice.sample(known, min(6, len(known))):
            await look(self._jobs, job, self._records)
        await asyncio.sleep(1)


async def look(client: Client, job: JobSeen, records: Records) -> None:
    """Writes down how a job stands, if that can be known now."""
    try:
        shown = await client.send("GET", f"/v1/jobs/{job.job_id}")
    except httpx.TransportError:
        return
    if shown.status_code == 200:
        status = shown.json()
        job.states.append(JobState(status["state"]))
        webhook = status["webhook"] or {}
        job.webhook = webhook.get("state", "")
        job.webhook_calls = len(webhook.get("calls", ()))
    elif shown.status_code != 503:
        records.wrongs.append(f"{job.job_id} is lost: {shown.status_code} {shown.text[:200]}")
