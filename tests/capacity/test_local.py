import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from control_plane.capacity.local import LOCAL, LocalAgent, LocalCapacity
from control_plane.capacity.port import Ended
from infra.backoff import Backoff
from infra.clock import SystemClock

pytestmark = pytest.mark.real

# An agent that writes down its environment and sleeps; told by its file name how to behave.
AGENT = """
import os, signal, sys, time
with open(os.path.join(os.environ["PLATFORM_NODE_STATE_DIR"], "seen"), "a") as seen:
    names = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("PLATFORM")]
    seen.write(" ".join(names) + chr(10))
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1] == "broken":
    sys.exit(3)
time.sleep(60)
"""


@pytest.fixture
async def make(
    tmp_path: Path, environment: dict[str, str]
) -> AsyncIterator[Callable[..., LocalCapacity]]:
    made: list[LocalCapacity] = []

    def make(behaviour: str = "calm", *command: str) -> LocalCapacity:
        agent = LocalAgent(
            control_plane_url="http://127.0.0.1:8470",
            token="0123456789abcdef",
            state_dir=tmp_path / "node",
            environment=environment | {"PLATFORM_API_KEY": "not for agents"},
            command=command or (sys.executable, "-c", AGENT, behaviour),
        )
        capacity = LocalCapacity(
            agent,
            clock=SystemClock.start(),
            backoff=Backoff(first_s=0.02, most_s=0.1),
            stop_s=0.3,
        )
        made.append(capacity)
        return capacity

    yield make
    for capacity in made:
        await capacity.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - real processes keep real time
            await asyncio.sleep(0.01)


def seen(tmp_path: Path) -> list[str]:
    path = tmp_path / "node" / "seen"
    return path.read_text().splitlines() if path.exists() else []


async def test_launching_twice_starts_one_agent_with_its_settings(
    make: Callable[..., LocalCapacity], tmp_path: Path
):
    capacity = make()
    await capacity.open()
    await capacity.open()
    await until(lambda: seen(tmp_path))
    assert seen(tmp_path) == [
        "PLATFORM_NODE_CONTROL_PLANE_URL=http://127.0.0.1:8470 PLATFORM_NODE_HOST=127.0.0.1 "
        "PLATFORM_NODE_ID=local "
        "PLATFORM_NODE_LOG_FORMAT=console PLATFORM_NODE_LOG_LEVEL=info "
        f"PLATFORM_NODE_STATE_DIR={tmp_path / 'node'} PLATFORM_NODE_TOKEN=0123456789abcdef"
    ]
    assert [(it.node_id, it.is_elastic) for it in capacity.describe()] == [(LOCAL, False)]


async def test_a_killed_agent_is_told_of_and_started_again(
    make: Callable[..., LocalCapacity], tmp_path: Path
):
    capacity, ended = make(), []
    capacity.subscribe(ended.append)
    await capacity.open()
    await until(lambda: seen(tmp_path))
    first = capacity.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(seen(tmp_path)) == 2)
    assert ended == [Ended(LOCAL, "the agent was killed by signal 9")]
    assert capacity.pid not in {first, None}
    assert len(capacity.describe()) == 1


async def test_an_agent_that_exits_again_and_again_is_started_with_growing_pauses(
    make: Callable[..., LocalCapacity], tmp_path: Path
):
    capacity, ended = make("broken"), []
    capacity.subscribe(ended.append)
    await capacity.open()
    await until(lambda: len(seen(tmp_path)) >= 3)
    assert set(ended) == {Ended(LOCAL, "the agent exited 3")}


async def test_an_agent_that_cannot_be_started_is_a_reason_not_a_crash(
    make: Callable[..., LocalCapacity],
):
    capacity, ended = make("calm", "/does/not/exist"), []
    capacity.subscribe(ended.append)
    await capacity.open()
    await until(lambda: len(ended) >= 2)


@pytest.mark.parametrize("behaviour", ["calm", "stubborn"])
async def test_a_terminated_agent_is_gone_and_stays_gone(
    make: Callable[..., LocalCapacity], tmp_path: Path, behaviour: str
):
    capacity = make(behaviour)
    await capacity.open()
    await until(lambda: seen(tmp_path))
    pid = capacity.pid
    await capacity.terminate(LOCAL)
    await capacity.terminate(LOCAL)
    assert pid is not None and not psutil.pid_exists(pid)
    assert capacity.describe() == ()
    await asyncio.sleep(0.2)
    assert len(seen(tmp_path)) == 1
