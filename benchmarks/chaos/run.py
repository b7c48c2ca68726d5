"""One run: the platform starts, is used and harmed at once, then left alone and looked at."""

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.chaos.aftermath import Aftermath
from benchmarks.chaos.client import QUESTIONS, Client, answer_in, asked
from benchmarks.chaos.faults import Saboteur, small_disk
from benchmarks.chaos.load import Crowd
from benchmarks.chaos.operators import Operators, spec
from benchmarks.chaos.plan import faults
from benchmarks.chaos.receiver import SECRET, receiver
from benchmarks.chaos.records import Absence, Records
from benchmarks.chaos.verdict import defects_in, violations
from tests.support.platform import RunningPlatform

ROOT_KEY = "chaos-root-key-0123456789"
TENANT = "jobs"  # whose the jobs are
Say = Callable[[str], None]


class Run:
    """`broken` is what did not hold, in words, once `go` has returned."""

    def __init__(self, model: Path, environment: dict[str, str], *, seed: int, say: Say) -> None:
        self._model = model
        self._environment = environment | {
            "PLATFORM_API_KEY": ROOT_KEY,
            "PLATFORM_LOG_FORMAT": "json",
            "PLATFORM_WEBHOOK_SECRET": SECRET,
            "PLATFORM_WEBHOOK_PRIVATE": "true",
        }
        self._seed = seed
        self._say = say
        self._began_at = time.monotonic()
        self._answers: dict[int, str] = {}
        self.records = Records()
        self.broken: list[str] = []

    def go(self, *, seconds: float, keep: Path | None) -> None:
        """Runs for so long and as long as it takes to settle; `keep` gets the log."""
        with (
            tempfile.TemporaryDirectory(prefix="firstlight-chaos-") as folder,
            small_disk(Path(folder) / "disk") as disk,
        ):
            if disk is None:
                self._tell("no file system can be mounted here: the disk will not be full")
            # its log is beside the state folder: on the small disk, too
            state_dir = Path(folder) / "disk" / "state"
            state_dir.mkdir()
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
        client = self._client(platform, platform.headers)
        await self._deploy(client)
        jobs = self._client(platform, await self._key_of_another_tenant(client))
        over = asyncio.Event()
        operators = Operators(client, self.records, self._model, over, self._seed)
        async with receiver(self._seed, self._told) as hook:
            crowd = Crowd(client, jobs, self.records, over, hook=hook, seed=self._seed)
            async with asyncio.TaskGroup() as tasks:
                working = [tasks.create_task(it) for it in (crowd.run(), operators.run())]
                await self._harm(Saboteur(platform, disk=disk, gone=self._gone), seconds)
                self._tell("no more faults")
                over.set()
                await asyncio.wait(working)
            after = Aftermath(client, jobs, operators, self.records, self._tell)
            self.broken += await after.settle(platform.state_dir, tenant=TENANT)
        await client.close()
        await jobs.close()
        self.broken += violations(self.records, self._answers)

    def _client(self, platform: RunningPlatform, headers: Mapping[str, str]) -> Client:
        return Client(lambda: platform.url, headers, self._answers, self.records.seen.append)

    def _gone(self, absence: Absence) -> None:
        self.records.absences.append(absence)

    def _told(self, job_id: str, state: str) -> None:
        self.records.told.append((job_id, state))

    async def _deploy(self, client: Client) -> None:
        """Deploys the model and learns the right answers before anything goes wrong."""
        sent = await client.send("PUT", "/v1/models/chat", json=spec(self._model, grace_s=2))
        assert sent.status_code == 202, sent.text
        for question in QUESTIONS:
            path, body = asked(question)
            response = await client.send("POST", path, json=body, timeout=120)
            assert response.status_code == 200, response.text
            self._answers[question] = answer_in(response.json())

    async def _key_of_another_tenant(self, client: Client) -> Mapping[str, str]:
        made = await client.send("POST", "/v1/keys", json={"name": "jobs", "tenant": TENANT})
        assert made.status_code == 201, made.text
        return {"authorization": f"Bearer {made.json()['key']}"}

    async def _harm(self, saboteur: Saboteur, seconds: float) -> None:
        until = time.monotonic() + seconds
        for peace_s, fault in faults(self._seed):
            if time.monotonic() + peace_s >= until:
                return
            await asyncio.sleep(peace_s)
            began_at = time.monotonic()
            came_of_it = await asyncio.to_thread(saboteur.do, fault)
            self._say(f"{began_at - self._began_at:7.1f} s  {fault}: {came_of_it}")

    def _tell(self, line: str) -> None:
        self._say(f"{time.monotonic() - self._began_at:7.1f} s  {line}")
