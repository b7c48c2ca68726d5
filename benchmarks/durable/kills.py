"""kill -9 of the platform, its Redis, its node agent and its replicas while jobs come in."""

import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.support.platform import RunningPlatform, running_platform

VICTIMS = ("platform", "redis", "fl-node", "fl-replica")
ASKED = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
PAUSE_S = 0.15  # between jobs
SETTLE_S = 180.0  # for the last jobs to end


@dataclass
class Verdict:
    """What became of the jobs that were answered 202."""

    accepted: set[str] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    double_keys: int = 0

    @property
    def is_good(self) -> bool:
        succeeded = self.states["succeeded"] == len(self.accepted)
        return bool(self.accepted) and not self.lost and succeeded and not self.double_keys


def run(model: Path, environment: dict[str, str], *, kills: int, seed: int) -> Verdict:
    """Kills one process after the other at random moments, then counts."""
    dice = random.Random(seed)
    verdict = Verdict()
    with running_platform(environment) as platform:
        platform.deploy("chat", model, scaling={"grace": 2})
        callers = _Callers(platform, verdict)
        while verdict.kills.total() < kills:
            time.sleep(dice.uniform(0.1, 2.5))  # noqa: TID251 - real processes
            victim = dice.choice(VICTIMS)
            if _kill(platform, victim):  # else there is none of that kind just now
                verdict.kills[victim] += 1
        callers.stop()
        _count(platform, verdict)
    return verdict


class _Callers:
    """Leaves a job every so often, and sends it again under its key until it has a 202."""

    def __init__(self, platform: RunningPlatform, verdict: Verdict) -> None:
        self._platform = platform
        self._verdict = verdict
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join()

    def _work(self) -> None:
        number = 0
        while not self._is_stopping.wait(PAUSE_S):
            number += 1
            ids = {self._leave(f"key-{number}")}
            if number % 5 == 0:  # a caller that does not believe it
                ids.add(self._leave(f"key-{number}"))
            self._verdict.accepted |= ids
            self._verdict.double_keys += len(ids) - 1

    def _leave(self, key: str) -> str:
        headers = {"prefer": "respond-async", "idempotency-key": key}
        while True:
            try:
                response = httpx.post(
                    f"{self._platform.url}/v1/models/chat/invoke",
                    json=ASKED,
                    headers=headers,
                    timeout=5,
                )
                if response.status_code == 202:
                    return str(response.json()["id"])
            except httpx.TransportError:
                pass
            time.sleep(0.05)  # noqa: TID251 - real processes


def _kill(platform: RunningPlatform, victim: str) -> bool:
    """Kills a process of that kind; False where there is none now."""
    if victim == "platform":
        platform.restart(signal.SIGKILL)
        return True
    for process in platform.named(victim):
        with suppress(psutil.NoSuchProcess):
            process.kill()
            return True
    return False


def _count(platform: RunningPlatform, verdict: Verdict) -> None:
    deadline = time.monotonic() + SETTLE_S
    for job_id in sorted(verdict.accepted):
        while True:
            response = platform.client.get(f"/v1/jobs/{job_id}")
            if response.status_code == 404:
                verdict.lost.append(job_id)
                break
            status = response.json()
            if status["state"] not in {"queued", "running"} or time.monotonic() > deadline:
                verdict.states[status["state"]] += 1
                verdict.attempts[status["attempts"]] += 1
                break
            time.sleep(0.1)  # noqa: TID251 - real processes
