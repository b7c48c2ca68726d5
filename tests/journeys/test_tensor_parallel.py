"""A model that two processes compute, on the real platform."""

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.platform import RunningPlatform
from tests.support.processes import running, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

BODY = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
ENGINE = {"tensor_parallel": 2, "dtype": "float32"}
LONG = {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def divided(platform: RunningPlatform, smollm2_dir: Path) -> RunningPlatform:
    platform.deploy(
        "divided",
        smollm2_dir,
        engine=ENGINE,
        scaling={"grace": 1},
    )
    platform.deploy("whole", smollm2_dir, engine={"dtype": "float32"}, scaling={"grace": 1})
    return platform


def invoke(platform: RunningPlatform, name: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{platform.url}/v1/models/{name}/invoke", json=body, timeout=120)


def sleepers(platform: RunningPlatform) -> list[dict[str, Any]]:
    return [it for it in platform.sleepers() if it["revision"].startswith("divided@")]


def ranks(platform: RunningPlatform) -> list[psutil.Process]:
    return running(platform.processes(), "fl-rank")


def test_two_processes_answer_as_one_does(divided: RunningPlatform) -> None:
    whole, parts = invoke(divided, "whole", BODY), invoke(divided, "divided", BODY)

    assert whole.status_code == parts.status_code == 200
    assert parts.json()["output"] == whole.json()["output"]
    divided.until_idle("divided")


def test_all_processes_of_a_model_sleep_and_wake_together(divided: RunningPlatform) -> None:
    before = invoke(divided, "divided", BODY)
    divided.until_idle("divided")
    until(lambda: sleepers(divided), seconds=30, what="it sleeps")
    asleep = ranks(divided)
    assert len(asleep) == 1
    until(lambda: asleep[0].cpu_percent(1) == 0, seconds=60, what="it rests")

    after = invoke(divided, "divided", BODY)

    assert after.json()["output"] == before.json()["output"]
    assert [it.pid for it in ranks(divided)] == [asleep[0].pid]
    report = divided.cold_starts("divided", last=1)[0]
    assert report["from_rung"] == "weights"
    divided.until_idle("divided")
    until(lambda: sleepers(divided), seconds=30, what="it sleeps")

    asleep[0].kill()

    until(lambda: not sleepers(divided), seconds=60, what="it has ended")
    assert invoke(divided, "divided", BODY).status_code == 200
    divided.until_idle("divided")


def test_a_new_revision_leaves_no_rank_of_the_old_one(
    divided: RunningPlatform, smollm2_dir: Path
) -> None:
    divided.deploy("divided", smollm2_dir, engine=ENGINE, scaling={"grace": 1, "sleep": 0})

    until(lambda: not ranks(divided), seconds=60, what="no rank is left")
    assert invoke(divided, "divided", BODY).status_code == 200
    divided.until_idle("divided")
    until(lambda: not ranks(divided), seconds=60, what="no rank is left")


def test_a_rank_that_is_killed_ends_the_replica_and_the_next_request_starts_another(
    divided: RunningPlatform,
) -> None:
    answers: list[httpx.Response] = []
    calling = threading.Thread(target=lambda: answers.append(invoke(divided, "divided", LONG)))
    calling.start()
    until(lambda: divided.status("divided")["state"] == "ready", seconds=60, what="a replica")
    time.sleep(0.5)  # noqa: TID251 - let it decode for real
    [rank] = ranks(divided)

    rank.kill()
    calling.join(90)

    assert answers and answers[0].status_code in {200, 502}
    assert invoke(divided, "divided", BODY).status_code == 200
    log = divided.client.get("/v1/models/divided/logs").text
    assert "rank 1 of 2 was ended by SIGKILL" in log
    divided.until_idle("divided")


def test_a_rank_that_is_killed_while_it_loads_costs_no_request(divided: RunningPlatform) -> None:
    answers: list[httpx.Response] = []
    calling = threading.Thread(target=lambda: answers.append(invoke(divided, "divided", BODY)))
    calling.start()
    until(lambda: ranks(divided), seconds=30, what="a rank is starting")

    for rank in ranks(divided):
        rank.kill()
    calling.join(90)

    assert answers and answers[0].status_code == 200
    divided.until_idle("divided")


def test_a_model_with_too_few_heads_is_refused_for_good(
    divided: RunningPlatform, smollm2_dir: Path
) -> None:
    divided.deploy("crumbs", smollm2_dir, engine={"tensor_parallel": 16})

    refused = invoke(divided, "crumbs", BODY)

    assert refused.status_code == 503
    assert "cannot be divided among 16" in refused.json()["detail"]
    until(lambda: not ranks(divided), seconds=60, what="no rank is left")
