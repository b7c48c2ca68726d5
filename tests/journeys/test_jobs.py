"""Jobs on the real platform: kill -9 of everything it consists of, and every job ends once."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.platform import RunningPlatform, running_platform
from tests.support.processes import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

ASKED = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
OVER = {"succeeded", "failed", "cancelled", "expired"}


@pytest.fixture(scope="module")
def harmed(environment: dict[str, str], smollm2_dir: Path) -> Iterator[RunningPlatform]:
    """One platform that lives through all of it."""
    with running_platform(environment) as running:
        running.deploy("chat", smollm2_dir, scaling={"grace": 1})
        yield running


def rests(process: psutil.Process) -> bool:
    """Whether it uses no processor to speak of for half a second; one that has ended does not."""
    try:
        return process.cpu_percent(0.5) < 50
    except psutil.NoSuchProcess:
        return True


def leave(platform: RunningPlatform, key: str | None = None) -> str:
    headers = {"prefer": "respond-async"} | ({} if key is None else {"idempotency-key": key})
    response = platform.client.post("/v1/models/chat/invoke", json=ASKED, headers=headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def state(platform: RunningPlatform, job_id: str) -> str:
    response = platform.client.get(f"/v1/jobs/{job_id}")
    return str(response.json()["state"]) if response.status_code == 200 else response.text


def all_succeed(platform: RunningPlatform, ids: list[str], *, seconds: float = 60) -> None:
    until(
        lambda: all(state(platform, job_id) in OVER for job_id in ids),
        seconds=seconds,
        what="every job is over",
    )
    assert {state(platform, job_id) for job_id in ids} == {"succeeded"}
    texts = {platform.client.get(f"/v1/jobs/{it}/result").json()["output"] for it in ids}
    assert len(texts) == 1, "greedy answers to one prompt"


def kill(platform: RunningPlatform, name: str) -> None:
    for process in platform.named(name):
        process.kill()


@pytest.mark.parametrize("victim", ["fl-replica", "fl-node", "redis"])
def test_jobs_live_through_the_death_of(victim: str, harmed: RunningPlatform) -> None:
    ids = [leave(harmed) for _ in range(12)]
    until(lambda: any(state(harmed, it) == "running" for it in ids), seconds=60, what="one runs")
    time.sleep(0.5)  # noqa: TID251 - let it decode for real

    kill(harmed, victim)

    until(harmed.is_ready, seconds=60, what="the store is back")
    all_succeed(harmed, ids)
    harmed.until_idle("chat")


def test_jobs_live_through_kills_of_the_platform(harmed: RunningPlatform) -> None:
    ids = []
    for number in range(2):
        ids += [leave(harmed, f"key-{number}-{each}") for each in range(4)]
        time.sleep(number * 3)  # noqa: TID251 - another stage each time
        harmed.stop(signal.SIGKILL)
        harmed.start()
        assert leave(harmed, f"key-{number}-0") == ids[-4], "its key is known after the kill"

    all_succeed(harmed, ids)


def test_a_cancelled_job_leaves_the_replica_at_once(harmed: RunningPlatform) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 1500, "temperature": 0, "ignore_eos": True}
    response = harmed.client.post(
        "/v1/models/chat/invoke", json=body, headers={"prefer": "respond-async"}
    )
    job_id = response.json()["id"]
    until(lambda: harmed.status("chat")["in_flight"] == 1, seconds=30, what="it runs")
    [replica] = harmed.named("fl-replica")
    until(lambda: not rests(replica), seconds=30, what="it decodes")

    cancelled = harmed.client.delete(f"/v1/jobs/{job_id}")

    assert cancelled.json()["state"] == "cancelled"
    assert harmed.status("chat")["in_flight"] == 0
    until(lambda: rests(replica), seconds=8, what="the replica rests")
