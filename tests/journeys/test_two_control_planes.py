"""Two control planes on one Redis that somebody else runs: one leads, the other takes over."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.platform import RunningPlatform
from tests.support.processes import require, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

ASKED = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
ASYNC = {"prefer": "respond-async"}
INVOKE = "/v1/models/chat/invoke"
LEASE_S = 10.0


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require(shutil.which("redis-server"), "redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    options = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--dir", folder, *options], stdout=subprocess.DEVNULL
    )
    yield f"redis://127.0.0.1:{port}/0"
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def both(
    redis_url: str,
    environment: dict[str, str],
    smollm2_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[RunningPlatform]]:
    """Two, of whom one leads; the model is deployed while the other follows."""
    shared = environment | {"PLATFORM_REDIS_URL": redis_url}
    folder = tmp_path_factory.mktemp("both")
    first = RunningPlatform(folder / "first", shared)
    second = RunningPlatform(folder / "second", shared)
    first.start()
    second.start(until_ready=False)
    first.deploy("chat", smollm2_dir, scaling={"grace": 1})
    yield [first, second]
    for platform in (first, second):
        platform.stop()


@pytest.fixture
def pair(both: list[RunningPlatform]) -> tuple[RunningPlatform, RunningPlatform]:
    """Who leads now and who follows."""
    follower, leader = sorted(both, key=RunningPlatform.is_ready)
    assert leader.is_ready() and not follower.is_ready()
    return leader, follower


def test_who_follows_answers_a_typed_error_at_once(
    pair: tuple[RunningPlatform, RunningPlatform],
) -> None:
    _, follower = pair
    calls = [
        follower.client.post(INVOKE, json=ASKED),
        follower.client.post(INVOKE, json=ASKED | {"stream": True}),
        follower.client.post(INVOKE, json=ASKED, headers=ASYNC),
        follower.client.get("/v1/models"),
    ]
    for answer in calls:
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/not-leader"
        assert "/readyz" in answer.json()["hint"] and answer.headers["retry-after"]
    assert follower.client.get("/readyz").status_code == 503
    assert follower.client.get("/healthz").status_code == 200


def test_a_leader_that_stalls_finds_itself_followed_and_gives_up_its_replicas(
    pair: tuple[RunningPlatform, RunningPlatform],
) -> None:
    leader, follower = pair
    client = httpx.Client(base_url=leader.url, timeout=60)
    with client, client.stream("POST", INVOKE, json=LONG | {"stream": True}) as answer:
        events = answer.iter_lines()
        heard = [next(it for it in events if it.startswith("data:"))]

        leader.process.send_signal(signal.SIGSTOP)
        until(follower.is_ready, seconds=60, what="the follower leads")
        leader.process.send_signal(signal.SIGCONT)

        until(lambda: follows(leader), seconds=60, what="it has heard of it")
        heard += [it for it in events if it]
    assert not [it for it in heard if "/problems/" in it], "what ran when it lost the lead ends"
    assert '"completion_tokens":400' in heard[-1], "with its last word"
    until(lambda: not busy(leader), seconds=30, what="its replicas have ended")
    assert follower.client.post(INVOKE, json=ASKED).status_code == 200


def test_a_killed_leaders_jobs_and_models_are_the_followers_within_its_lease(
    pair: tuple[RunningPlatform, RunningPlatform],
) -> None:
    leader, follower = pair
    locations = [
        leader.client.post(INVOKE, json=ASKED, headers=ASYNC).headers["location"] for _ in range(40)
    ]
    until(lambda: leader.status("chat")["in_flight"], seconds=30, what="jobs run")

    leader.stop(signal.SIGKILL)
    until(follower.is_ready, seconds=60, what="the follower leads")

    assert follower.client.post(INVOKE, json=ASKED).status_code == 200, "and has the model"
    until(
        lambda: {follower.client.get(it).json()["state"] for it in locations} == {"succeeded"},
        seconds=90,
        what="every job has succeeded",
    )
    attempts = [follower.client.get(it).json()["attempts"] for it in locations]
    assert set(attempts) <= {1, 2} and attempts.count(1) > 0, "again only what had been running"
    texts = {follower.client.get(f"{it}/result").json()["output"] for it in locations}
    assert len(texts) == 1
    leader.start(until_ready=False)
    assert follows(leader)


def follows(platform: RunningPlatform) -> bool:
    return platform.client.get("/v1/models").json().get("type") == "/problems/not-leader"


def busy(platform: RunningPlatform) -> list[str]:
    """What its own metrics say of replicas that have not ended."""
    metrics = platform.client.get("/metrics").text.splitlines()
    return [it for it in metrics if it.startswith("firstlight_replicas{") and it[-3:] != "0.0"]
