"""kill -9 of every process the platform has: nothing hangs, nothing is lost, nothing is left."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from control_plane.autoscaler.experience import ASSUMED_COLD_START_S
from control_plane.autoscaler.memory import WRITE_EVERY_S
from tests.support.platform import RunningPlatform, running_platform
from tests.support.processes import alive, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

BODY = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
LONG = {"prompt": "Once upon a time", "max_tokens": 120, "temperature": 0}


@pytest.fixture(scope="module")
def harmed(environment: dict[str, str], smollm2_dir: Path) -> Iterator[RunningPlatform]:
    """One platform that lives through all of it; nothing sleeps, so that every wake is a climb."""
    with running_platform(environment) as running:
        running.deploy("chat", smollm2_dir, scaling={"grace": 1, "sleep": 0})
        yield running


def kill(platform: RunningPlatform, name: str) -> None:
    until(lambda: platform.named(name), seconds=60, what=f"there is a {name}")
    for process in platform.named(name):
        process.kill()


class Call:
    """One request in a thread of its own."""

    def __init__(self, platform: RunningPlatform, body: dict[str, object]) -> None:
        self.response: httpx.Response | None = None

        def run() -> None:
            self.response = httpx.post(
                f"{platform.url}/v1/models/chat/invoke", json=body, timeout=60
            )

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def result(self) -> httpx.Response:
        self._thread.join(timeout=60)
        assert self.response is not None, "the request hangs"
        return self.response


def until_ready(platform: RunningPlatform) -> None:
    until(lambda: platform.status("chat")["state"] == "ready", seconds=30, what="a replica")


def test_a_replica_killed_while_it_serves_ends_in_a_typed_answer(harmed: RunningPlatform) -> None:
    call = Call(harmed, LONG)
    until_ready(harmed)
    time.sleep(0.5)  # noqa: TID251 - let it decode for real

    kill(harmed, "fl-replica")

    assert call.result().status_code in {200, 502}
    assert (
        httpx.post(f"{harmed.url}/v1/models/chat/invoke", json=BODY, timeout=60).status_code == 200
    )
    harmed.until_idle("chat")


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_a_replica_killed_while_it_climbs_is_replaced(
    harmed: RunningPlatform, delay_s: float
) -> None:
    harmed.until_standby()
    call = Call(harmed, BODY)
    until(lambda: harmed.status("chat")["replicas"], seconds=60, what="a replica is assigned")
    time.sleep(delay_s)  # noqa: TID251 - reach another stage

    kill(harmed, "fl-replica")

    assert call.result().status_code == 200
    harmed.until_idle("chat")


def test_a_killed_zygote_is_replaced_and_its_replicas_live_on(harmed: RunningPlatform) -> None:
    call = Call(harmed, LONG)
    until_ready(harmed)

    kill(harmed, "fl-zygote")

    assert call.result().status_code == 200
    until(lambda: harmed.named("fl-zygote"), seconds=60, what="a new zygote")
    harmed.until_idle("chat")
    harmed.until_standby()
    assert Call(harmed, BODY).result().status_code == 200


def test_a_killed_agent_is_replaced_and_waiting_requests_are_answered(
    harmed: RunningPlatform,
) -> None:
    harmed.until_standby()
    harmed.processes()
    call = Call(harmed, BODY)

    kill(harmed, "fl-node")

    assert call.result().status_code in {200, 502}
    assert Call(harmed, BODY).result().status_code == 200
    harmed.until_idle("chat")


def test_a_killed_redis_is_restarted_and_nothing_is_forgotten(harmed: RunningPlatform) -> None:
    kill(harmed, "redis")

    until(harmed.is_ready, seconds=60, what="the store is back")
    assert Call(harmed, BODY).result().status_code == 200
    assert harmed.status("chat")["revision"] == "chat@1"


def test_who_is_told_to_end_finishes_what_runs_and_leaves_nothing(
    environment: dict[str, str], smollm2_dir: Path
) -> None:
    with running_platform(environment) as platform:
        platform.deploy("chat", smollm2_dir, scaling={"grace": 30})
        for how in (signal.SIGTERM, signal.SIGINT):
            assert Call(platform, BODY).result().status_code == 200
            platform.until_standby()
            last = Call(platform, LONG)
            until(lambda: platform.status("chat")["in_flight"], seconds=60, what="it runs")
            seen = platform.processes()
            assert len(seen) >= 5
            said = platform.log.stat().st_size

            platform.stop(how)

            assert not alive(seen)
            assert last.result().status_code == 200, "what runs is finished"
            assert platform.complaints(said) == [], "an end in order is nothing to warn of"
            assert not [path for path in platform.state_dir.rglob("*") if path.is_socket()]
            platform.start()


def test_of_a_killed_platform_no_process_is_left_and_all_that_it_knew(
    environment: dict[str, str], smollm2_dir: Path
) -> None:
    with running_platform(environment) as platform:
        platform.deploy("chat", smollm2_dir)
        assert Call(platform, BODY).result().status_code == 200
        time.sleep(1.5)  # noqa: TID251 - an idle time, as short as one can be
        assert Call(platform, BODY).result().status_code == 200
        time.sleep(1.5)  # noqa: TID251
        learnt = keep_alive(platform)
        assert learnt["idle_times"] == 1 and learnt["cold_start_s"] != ASSUMED_COLD_START_S
        time.sleep(2 * WRITE_EVERY_S)  # noqa: TID251 - it is written behind
        platform.until_standby()
        reports = platform.cold_starts("chat")
        seen = platform.processes()
        assert len(seen) >= 5

        platform.stop(signal.SIGKILL)
        assert not alive(seen)
        platform.start()

        status = platform.status("chat")
        assert (status["revision"], status["state"], status["replicas"]) == ("chat@1", "idle", [])
        assert platform.cold_starts("chat") == reports
        assert keep_alive(platform) == pytest.approx(learnt)
        assert Call(platform, BODY).result().status_code == 200
        assert platform.client.delete("/v1/models/chat").status_code == 204
        platform.deploy("chat", smollm2_dir)
        assert keep_alive(platform)["idle_times"] == 0


def keep_alive(platform: RunningPlatform) -> dict[str, float]:
    return dict(platform.client.get("/v1/models/chat/explain").json()["keep_alive"])
