"""Redeploying, splitting and rolling back the real platform under load: nothing is dropped."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.platform import RunningPlatform, running_platform
from tests.support.processes import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

ASKED = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}


@dataclass(frozen=True)
class Answer:
    """What one request got; `sent_at` is seconds of this process's clock."""

    sent_at: float
    status: int
    revision: str
    text: str


class Load:
    """Clients that call without a pause, every other one for a stream, until they are stopped."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._url = url
        self._is_over = threading.Event()
        self.answers: list[Answer] = []
        self.failures: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._call, args=(number % 2 == 0,))
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def seen(self, *revisions: str) -> bool:
        """Whether each of these has answered, and nothing has failed."""
        assert not self.failures, self.failures
        return {answer.revision for answer in tuple(self.answers)} >= set(revisions)

    def since(self, at: float) -> list[Answer]:
        """Answers to requests that were sent after that."""
        return [answer for answer in tuple(self.answers) if answer.sent_at > at]

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a request hangs"

    def _call(self, is_streaming: bool) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._is_over.is_set():
                try:
                    self.answers.append(_ask(client, is_streaming))
                except Exception as error:
                    self.failures.append(error)
                    return


def _ask(client: httpx.Client, is_streaming: bool) -> Answer:
    sent_at = time.monotonic()
    body = ASKED | {"stream": is_streaming}
    response = client.post("/v1/completions", json=body)
    text = _streamed(response.text) if is_streaming else response.json()["choices"][0]["text"]
    revision = response.headers["firstlight-revision"]
    return Answer(sent_at, response.status_code, revision, text)


def _streamed(body: str) -> str:
    """The text of a stream that was not cut off."""
    lines = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]", body
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


@pytest.fixture
def fresh(environment: dict[str, str], smollm2_dir: Path) -> Iterator[RunningPlatform]:
    with running_platform(environment) as running:
        running.deploy("chat", smollm2_dir, scaling={"grace": 1})
        yield running


def test_releases_under_load_drop_nothing(
    fresh: RunningPlatform, environment: dict[str, str], smollm2_dir: Path, tmp_path: Path
) -> None:
    def platform(*arguments: str) -> str:
        """What the command line prints."""
        done = subprocess.run(
            [sys.executable, "-m", "control_plane.main", *arguments],
            env=environment | {"PLATFORM_URL": fresh.url},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    load = Load(fresh.url)
    until(lambda: load.seen("chat@1"), seconds=60, what="the first revision answers")
    for grace in (2, 3):
        fresh.deploy("chat", smollm2_dir, scaling={"grace": grace})
        until(lambda: load.seen(f"chat@{grace}"), seconds=60, what="the next one answers")  # noqa: B023

    spec = tmp_path / "model.yaml"
    spec.write_text(f"name: chat\nsource: {smollm2_dir}\nscaling: {{grace: 4}}\n")
    assert "chat@4 is deployed and gets no request" in platform("deploy", str(spec), "--no-traffic")
    assert platform("traffic", "chat", "3=50", "4=50").split()[2:] == [
        *("chat@4", "50%"),
        *("chat@3", "50%"),
    ]
    split_at = time.monotonic()
    until(lambda: load.seen("chat@4"), seconds=60, what="the canary answers")
    until(lambda: len(load.since(split_at)) >= 12, seconds=60, what="both have answered some")
    assert platform("rollback", "chat").split()[2:] == ["chat@3", "100%"]
    rolled_back_at = time.monotonic()
    until(lambda: len(load.since(rolled_back_at)) >= 4, seconds=60, what="calls go on")
    load.stop()

    assert load.failures == []
    assert {answer.status for answer in load.answers} == {200}
    assert len({answer.text for answer in load.answers}) == 1, "greedy answers to one prompt"
    assert {answer.revision for answer in load.since(split_at)} == {"chat@3", "chat@4"}
    assert {answer.revision for answer in load.since(rolled_back_at)} == {"chat@3"}
    assert platform("revisions", "chat").count("chat@") == 4
    fresh.until_idle("chat", seconds=60)
