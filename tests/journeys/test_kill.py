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


@pytest.fixture
def fresh(environment: dict[str, str], smollm2_dir: Path) -> Iterator[RunningPlatform]:
    with running_platform(environment) as running:
        running.deploy("chat", smollm2_dir, scaling={"grace": 1})
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


def test_a_replica_killed_while_it_serves_ends_in_a_typed_answer(fresh: RunningPlatform) -> None:
    call = Call(fresh, LONG)
    until_ready(fresh)
    time.sleep(0.5)  # noqa: TID251 - let it decode for real

    kill(fresh, "fl-replica")

    assert call.result().status_code in {200, 502}
    assert (
        httpx.post(f"{fresh.url}/v1/models/chat/invoke", json=BODY, timeout=60).status_code == 200
    )
    fresh.until_idle("chat")


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.1, 0.2])
def test_a_replica_killed_while_it_climbs_is_replaced(
    fresh: RunningPlatform, delay_s: float
) -> None:
    fresh.until_standby()
    call = Call(fresh, BODY)
    until(lambda: fresh.status("chat")["replicas"], seconds=60, what="a replica is assigned")
    time.sleep(delay_s)  # noqa: TID251 - reach another stage

    kill(fresh, "fl-replica")

    assert call.result().status_code == 200
    fresh.until_idle("chat")


def test_a_killed_zygote_is_replaced_and_its_replicas_live_on(fresh: RunningPlatform) -> None:
    call = Call(fresh, LONG)
    until_ready(fresh)

    kill(fresh, "fl-zygote")

    assert call.result().status_code == 200
    until(lambda: fresh.named("fl-zygote"), seconds=60, what="a new zygote")
    fresh.until_idle("chat")
    fresh.until_standby()
    assert Call(fresh, BODY).result().status_code == 200


def test_a_killed_agent_is_replaced_and_waiting_requests_are_answered(
    fresh: RunningPlatform,
) -> None:
    fresh.until_standby()
    fresh.processes()
    call = Call(fresh, BODY)

    kill(fresh, "fl-node")

    assert call.result().status_code in {200, 502}
    assert Call(fresh, BODY).result().status_code == 200
    fresh.until_idle("chat")


def test_a_killed_redis_is_restarted_and_nothing_is_forgotten(fresh: RunningPlatform) -> None:
    kill(fresh, "redis")

    until(fresh.is_ready, seconds=60, what="the store is back")
    assert Call(fresh, BODY).result().status_code == 200
    assert fresh.status("chat")["revision"] == "chat@1"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_however_the_platform_ends(
    environment: dict[str, str], smollm2_dir: Path, how: signal.Signals
) -> None:
    with running_platform(environment) as platform:
        platform.deploy("chat", smollm2_dir, scaling={"grace": 30})
        assert Call(platform, BODY).result().status_code == 200
        platform.until_standby()
        last = None
        if how is not signal.SIGKILL:
            last = Call(platform, LONG)
            until(lambda: platform.status("chat")["in_flight"], seconds=60, what="it runs")
        seen = platform.processes()
        assert len(seen) >= 5
        said = platform.log.stat().st_size

        platform.stop(how)

        until(lambda: not alive(seen), seconds=60, what="every process is gone")
        if last is not None:
            assert last.result().status_code == 200, "what runs is finished"
            assert platform.complaints(said) == [], "an end in order is nothing to warn of"
            assert not [path for path in platform.state_dir.rglob("*") if path.is_socket()]
        platform.start()


def test_deployed_models_are_there_at_zero_after_kill_and_start(
    environment: dict[str, str], smollm2_dir: Path
) -> None:
    with running_platform(environment) as platform:
        platform.deploy("chat", smollm2_dir, scaling={"grace": 30})
        assert Call(platform, BODY).result().status_code == 200
        reports = platform.cold_starts("chat")

        platform.stop(signal.SIGKILL)
        platform.start()

        status = platform.status("chat")
        assert (status["revision"], status["state"], status["replicas"]) == ("chat@1", "idle", [])
        assert platform.cold_starts("chat") == reports
        assert Call(platform, BODY).result().status_code == 200


def test_what_was_learnt_of_a_model_is_known_after_kill_and_start(
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

        platform.stop(signal.SIGKILL)
        platform.start()

        assert keep_alive(platform) == pytest.approx(learnt)
        assert Call(platform, BODY).result().status_code == 200
        assert platform.client.delete("/v1/models/chat").status_code == 204
        platform.deploy("chat", smollm2_dir)
        assert keep_alive(platform)["idle_times"] == 0


def keep_alive(platform: RunningPlatform) -> dict[str, float]:
    return dict(platform.client.get("/v1/models/chat/explain").json()["keep_alive"])
