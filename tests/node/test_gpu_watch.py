"""A thread reads GPUs for the agent, and may hang as a driver does."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.node.makers import assignment, desired
from worker.node.agent import Agent
from worker.node.clock import NodeClock
from worker.node.fake_gpus import FakeGpus, a_gpu
from worker.node.fake_launcher import FakeLauncher
from worker.node.gpu_watch import GpuWatch, Pace
from worker.node.launcher import Exit
from worker.node.logs import ReplicaLogs
from worker.node.nvml import gpus_ahead

SELDOM = Pace(read_s=3600)


@asynccontextmanager
async def watched(
    folder: Path, gpus: FakeGpus, pace: Pace = SELDOM
) -> AsyncIterator[tuple[Agent, FakeLauncher]]:
    launcher, clock = FakeLauncher(spawn_s=0), NodeClock()
    agent = Agent(launcher, ReplicaLogs(folder, clock), clock)
    watch = GpuWatch(agent, lambda: gpus, pace)
    await watch.start()
    try:
        yield agent, launcher
    finally:
        watch.close()
        gpus.answers.set()


async def until(condition: Callable[[], object]) -> None:
    """Waits for the thread, while the loop goes on."""
    deadline = asyncio.get_running_loop().time() + 60
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.002)


async def test_the_gpus_are_known_when_the_watch_has_started(tmp_path: Path) -> None:
    async with watched(tmp_path, FakeGpus((a_gpu(0), a_gpu(1)))) as (agent, _):
        assert [gpu.gpu_id for gpu in agent.gpus()] == ["GPU-0", "GPU-1"]


async def test_a_gpu_that_is_given_back_is_read_at_once_and_assigned_again(tmp_path: Path) -> None:
    gpus = FakeGpus((a_gpu(0),))
    async with watched(tmp_path, gpus) as (agent, launcher):
        agent.apply(desired(assignment("r1", gpus=1), assignment("r2", gpus=1)))
        await until(lambda: agent.gpus()[0].replica_id == "r1")
        read = gpus.readings

        launcher.lose(1, Exit(-9))

        await until(lambda: agent.gpus()[0].replica_id == "r2")
        assert gpus.readings == read + 1


async def test_a_driver_that_hangs_holds_up_neither_the_start_nor_trust_for_ever(
    tmp_path: Path,
) -> None:
    gpus = FakeGpus((a_gpu(0),))
    gpus.answers.clear()
    pace = Pace(read_s=0.01, silent_s=0.1, first_s=0.05)
    async with watched(tmp_path, gpus, pace) as (agent, _):
        assert agent.gpus() == ()
        gpus.answers.set()
        await until(lambda: [gpu.trouble for gpu in agent.gpus()] == [None])

        gpus.answers.clear()
        await until(lambda: agent.gpus()[0].trouble == "its driver has not answered for 0.1 s")

        gpus.answers.set()
        await until(lambda: agent.gpus()[0].trouble is None)


def test_a_driver_loads_while_the_agent_does_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, may_load = FakeGpus(), threading.Event()

    def load(visible: tuple[str, ...] | None) -> FakeGpus:
        may_load.wait()
        return gpus if visible == ("0",) else FakeGpus()

    monkeypatch.setattr("worker.node.nvml.open_gpus", load)
    open_gpus = gpus_ahead(("0",))  # does not wait
    may_load.set()

    assert open_gpus() is gpus


def test_what_goes_wrong_with_a_driver_is_told_to_who_asks_for_its_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: tuple[str, ...] | None) -> FakeGpus:
        raise OSError("no such library")

    monkeypatch.setattr("worker.node.nvml.open_gpus", fail)

    with pytest.raises(OSError, match="no such library"):
        gpus_ahead(None)()
