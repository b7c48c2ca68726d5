"""A thread reads GPUs for the agent, and may hang as a driver does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.node.makers import assignment, desired
from worker.node.agent import Agent
from worker.node.clock import NodeClock
from worker.node.fake_gpus import FakeGpus, a_gpu
from worker.node.fake_launcher import FakeLauncher
from worker.node.gpu_watch import GpuWatch, Pace
from worker.node.launcher import Exit
from worker.node.logs import ReplicaLogs

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
