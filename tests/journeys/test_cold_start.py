"""A request at zero replicas, for real: it wakes one, adds up, and leaves nothing behind."""

import concurrent.futures
import json
import re
from pathlib import Path

import httpx
import pytest

from tests.support.platform import RunningPlatform

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

PROMPT = {"messages": [{"role": "user", "content": "Name three primary colours."}]}


def invoke(platform: RunningPlatform, **body: object) -> httpx.Response:
    return platform.client.post(
        "/v1/models/chat/invoke", json={**PROMPT, "max_tokens": 8, "temperature": 0, **body}
    )


def assert_adds_up(report: dict[str, object]) -> None:
    ttft_s = float(str(report["ttft_s"]))
    unattributed_s = float(str(report["unattributed_s"]))
    shares = report["shares"]
    assert isinstance(shares, list)
    explained_s = sum(share["seconds"] for share in shares)
    assert explained_s + unattributed_s == pytest.approx(ttft_s, abs=1e-6)
    assert -1e-6 <= unattributed_s <= max(0.005, 0.01 * ttft_s), report


def test_a_cold_request_is_answered_and_its_stages_add_up(platform: RunningPlatform) -> None:
    platform.until_idle("chat")

    response = invoke(platform)

    assert response.status_code == 200, response.text
    assert response.json()["output"]
    assert response.headers["firstlight-cold-start"] == "true"
    stages = dict(re.findall(r"([a-z]+);dur=([0-9.]+)", response.headers["server-timing"]))
    assert {"queue", "runtime", "weights", "engine", "prefill", "unattributed", "total"} <= set(
        stages
    )
    parts_ms = sum(float(ms) for name, ms in stages.items() if name != "total")
    assert parts_ms == pytest.approx(float(stages["total"]), abs=0.1 * len(stages))
    report = platform.cold_starts("chat", last=1)[0]
    assert report["request_id"] == response.headers["firstlight-request-id"]
    assert_adds_up(report)


def test_a_warm_request_is_not_reported_as_cold(platform: RunningPlatform) -> None:
    invoke(platform)
    before = len(platform.cold_starts("chat"))

    response = invoke(platform)

    assert response.status_code == 200
    assert "firstlight-cold-start" not in response.headers
    assert len(platform.cold_starts("chat")) == before


def test_of_thirty_requests_at_zero_every_one_that_waited_adds_up(
    platform: RunningPlatform,
) -> None:
    already = len(platform.cold_starts("chat"))
    waited = 0
    for _ in range(3):
        platform.until_idle("chat")
        platform.until_standby()
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            responses = list(pool.map(lambda _: invoke(platform, max_tokens=2), range(10)))
        assert [response.status_code for response in responses] == [200] * 10
        waited += sum("firstlight-cold-start" in response.headers for response in responses)

    reports = platform.cold_starts("chat", last=200)

    assert len(reports) - already == waited >= 3  # a model that sleeps wakes before some are sent
    for report in reports:
        assert_adds_up(report)


def test_a_held_stream_shows_its_progress_and_then_its_tokens(platform: RunningPlatform) -> None:
    platform.until_idle("chat")

    with platform.client.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "chat", **PROMPT, "max_tokens": 8, "stream": True},
        headers={"Firstlight-Progress": "true"},
    ) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]

    comments = [line for line in lines if line.startswith(":")]
    assert any(re.match(r": stage [a-z]+ \d+%", comment) for comment in comments)
    assert any(comment.startswith(": server-timing ") for comment in comments)
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert json.loads(data[0])["object"] == "chat.completion.chunk"


def test_five_hundred_requests_at_zero_cause_one_wake_and_no_error(
    platform: RunningPlatform, smollm2_dir: Path
) -> None:
    # A grace that is longer than so many threads of one process may need until the next one asks.
    platform.deploy("crowded", smollm2_dir, scaling={"grace": 5})
    platform.until_idle("crowded", seconds=60)

    limits = httpx.Limits(max_connections=500)
    with httpx.Client(base_url=platform.url, timeout=200, limits=limits) as client:

        def call(_: int) -> httpx.Response:
            body = {"prompt": "Hello", "max_tokens": 1, "temperature": 0}
            return client.post("/v1/models/crowded/invoke", json=body)

        with concurrent.futures.ThreadPoolExecutor(500) as pool:
            answers = list(pool.map(call, range(500)))

    assert [answer.status_code for answer in answers] == [200] * 500
    asked = {answer.headers["firstlight-request-id"] for answer in answers}
    woken_for = [
        it for it in platform.cold_starts("crowded", last=200) if it["request_id"] in asked
    ]
    # How many waited is a matter of speed: a parked worker may answer before the second has asked.
    assert len({report["replica_id"] for report in woken_for}) == 1, "one wake serves them all"
    platform.until_idle("crowded", seconds=60)


def test_the_fleet_returns_to_zero_after_its_grace(platform: RunningPlatform) -> None:
    assert invoke(platform).status_code == 200
    assert platform.status("chat")["state"] == "ready"

    platform.until_idle("chat")

    assert platform.status("chat")["state"] == "idle"
    metrics = platform.client.get("/metrics").text
    gauges = re.findall(r'^\w*(in_flight|waiting)\{model="chat"\} (\S+)', metrics, re.M)
    assert {name: float(value) for name, value in gauges} == {"in_flight": 0, "waiting": 0}
