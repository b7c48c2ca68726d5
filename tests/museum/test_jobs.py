"""Bugs of other queues with jobs that run: neither forgotten nor given away."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.queue.executor import Answered, Failed
from control_plane.queue.job import Job
from control_plane.queue.memory_store import MemoryJobStore
from control_plane.queue.order import NewJob, Order, Terms
from control_plane.queue.plane import JobPlane
from control_plane.queue.store import Policy
from infra.contracts.base import ModelName, RequestId
from infra.contracts.job import JobState
from infra.errors import JobNotFound
from infra.metrics import Metrics
from infra.objectstore.memory import MemoryObjects
from infra.supervise import TaskSet
from infra.virtual_time import LoopClock, run_virtual
from tests.queue.makers import BODY, CHAT, NOBODY

HALF_AN_HOUR = 1800.0
POLICY = Policy(keep_s=60)  # and leases of 30 s


class Slow:
    """An Executor that takes its time."""

    def __init__(self) -> None:
        self.executed = 0

    def room(self, model: ModelName, running: int) -> int:
        return 1 - running

    async def run(self, job: Job, body: bytes) -> Answered | Failed:
        self.executed += 1
        await asyncio.sleep(HALF_AN_HOUR)
        return Answered(200, "application/json", b"{}")


@contextmanager
def working(
    store: MemoryJobStore, executor: Slow, tasks: TaskSet, owner: str
) -> Iterator[JobPlane]:
    plane = JobPlane(
        store,
        MemoryObjects(),
        executor,
        owner=owner,
        clock=LoopClock(),
        metrics=Metrics(),
        is_leading=lambda: True,
    )
    for name, loop in plane.loops():
        tasks.start(loop, name=f"{owner} {name}")
    yield plane


async def accepted(plane: JobPlane, order: Order) -> Job:
    told: asyncio.Future[NewJob | Job | Exception] = asyncio.get_running_loop().create_future()
    plane.jobs.accept(order, told.set_result)
    outcome = await told
    assert isinstance(outcome, NewJob)
    return outcome.job()


def an_order() -> Order:
    terms = Terms(deadline_s=3 * HALF_AN_HOUR, max_attempts=3)
    return Order(NOBODY, CHAT, NOBODY, "/invoke", RequestId("req_1"), BODY, terms)


def test_runpod_18_a_job_that_runs_is_not_forgotten_however_long_it_takes() -> None:
    """RunPod: the TTL ran from the start and deleted jobs that were running, a 404."""

    async def main() -> None:
        store, executor, tasks = MemoryJobStore(POLICY), Slow(), TaskSet()
        with working(store, executor, tasks, "one") as plane:
            job_id = (await accepted(plane, an_order())).job_id
            for _ in range(int(HALF_AN_HOUR) // 10 - 1):
                await asyncio.sleep(10)
                assert (await plane.jobs.get(job_id, tenant=NOBODY)).state is JobState.RUNNING
            await asyncio.sleep(50)
            job, body = await plane.jobs.answer(job_id, tenant=NOBODY)
            assert (job.state, body) == (JobState.SUCCEEDED, b"{}")
            await asyncio.sleep(POLICY.keep_s)
            try:
                await plane.jobs.get(job_id, tenant=NOBODY)
            except JobNotFound:
                pass
            else:
                raise AssertionError("it is kept for ever")
        await tasks.close()

    run_virtual(main())


def test_xautoclaim_19_a_slow_consumer_that_lives_keeps_its_job() -> None:
    """Redis XAUTOCLAIM: what is idle for long is given to another, and executed twice."""

    async def main() -> None:
        store, tasks = MemoryJobStore(POLICY), TaskSet()
        slow, idle = Slow(), Slow()
        with working(store, slow, tasks, "slow") as plane:
            job_id = (await accepted(plane, an_order())).job_id
            await asyncio.sleep(1)
            with working(store, idle, tasks, "idle"):
                await asyncio.sleep(HALF_AN_HOUR + 1)
            job = await plane.jobs.get(job_id, tenant=NOBODY)
        await tasks.close()
        assert (slow.executed, idle.executed) == (1, 0)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)

    run_virtual(main())
