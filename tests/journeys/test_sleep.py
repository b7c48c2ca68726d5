"""A model goes to sleep after its grace and wakes from the weights rung, for real."""

import concurrent.futures

import pytest

from tests.journeys.test_cold_start import assert_adds_up
from tests.support.platform import RunningPlatform
from tests.support.processes import running, runs, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def ask(platform: RunningPlatform, name: str = "chat") -> str:
    response = platform.client.post(
        f"/v1/models/{name}/invoke",
        json={"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
    )
    assert response.status_code == 200, response.text
    return str(response.json()["output"])


def test_a_request_wakes_the_model_that_sleeps_and_gets_the_same_answer(
    platform: RunningPlatform,
) -> None:
    first = ask(platform)
    platform.until_idle("chat")
    platform.until_asleep()
    (sleeper,) = platform.sleepers()
    assert sleeper["revision"] == "chat@1"
    assert "next request wakes it" in platform.status("chat")["reason"]
    assert 'firstlight_sleepers{node="local"} 1' in platform.client.get("/metrics").text

    assert ask(platform) == first

    report, before = platform.cold_starts("chat", last=2)
    assert before["from_rung"] != report["from_rung"] == "weights"
    sources = {share["stage"]: share["source"] for share in report["shares"]}
    assert (sources["runtime"], sources["weights"]) == ("asleep", "asleep")
    assert_adds_up(report)
    assert platform.sleepers() == []


def test_a_request_that_comes_while_the_model_falls_asleep_is_served(
    platform: RunningPlatform,
) -> None:
    for _ in range(3):
        ask(platform)
        until(lambda: platform.status("chat")["state"] != "ready", seconds=30, what="it is leaving")


def test_a_new_revision_ends_the_sleeper_of_the_old_one(
    platform: RunningPlatform, smollm2_dir
) -> None:
    ask(platform)
    platform.until_idle("chat")
    platform.until_asleep()

    platform.deploy("chat", smollm2_dir, scaling={"grace": 1}, engine={"max_batch_size": 4})

    until(lambda: not platform.sleepers(), seconds=60, what="nothing sleeps")
    ask(platform)
    assert platform.cold_starts("chat", last=1)[0]["from_rung"] != "weights"


def test_a_sleeper_that_dies_as_it_is_woken_costs_the_request_time_and_nothing_else(
    platform: RunningPlatform,
) -> None:
    answer = ask(platform)
    platform.until_idle("chat")
    platform.until_asleep()
    (sleeper,) = running(platform.processes(), "fl-sleeper")
    sleeper.suspend()

    with concurrent.futures.ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(ask, platform)
        until(lambda: not platform.sleepers(), seconds=60, what="it is told to wake")
        sleeper.kill()

        assert waiting.result(timeout=30) == answer
    assert platform.cold_starts("chat", last=1)[0]["from_rung"] != "weights"


def test_nothing_that_sleeps_outlives_a_killed_control_plane(platform: RunningPlatform) -> None:
    ask(platform)
    platform.until_idle("chat")
    platform.until_asleep()
    asleep = running(platform.processes(), "fl-sleeper")
    assert len(asleep) == 1

    platform.process.kill()

    until(lambda: not runs(asleep[0]), seconds=60, what="the sleeper is gone")
    platform.stop()
    platform.start()
    assert ask(platform)
