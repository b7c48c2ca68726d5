"""Large answers of executions that died: nobody's objects are taken away, everybody else's stay."""

import asyncio

from control_plane.queue.answers import INLINE_BYTES, Answers
from control_plane.queue.collector import LOOK_S, Collector
from control_plane.queue.executor import Answered
from control_plane.queue.job import Job
from control_plane.queue.memory_store import MemoryJobStore
from control_plane.queue.store import Policy
from infra.contracts.base import JobId
from infra.objectstore.memory import MemoryObjects
from infra.supervise import TaskSet
from infra.virtual_time import run_virtual
from tests.queue.makers import CHAT, NOBODY, T0, a_job, accept

LARGE = Answered(200, "text/plain", bytes(INLINE_BYTES + 1))
SMALL = Answered(200, "text/plain", b"small")


async def taken(store: MemoryJobStore, number: int, *, attempts: int = 1) -> Job:
    """A job in its so-many-th execution; the owners of those before died."""
    job = a_job(number)
    await accept(store, job)
    for attempt in range(attempts):
        [(job, _)] = await store.take(CHAT, 1, owner=f"owner-{attempt}", now=T0)
        if attempt < attempts - 1:
            await store.renew(f"owner-{attempt}", {}, now=T0)
    return job


async def test_only_what_is_nobodys_answer_is_collected() -> None:
    objects, store = MemoryObjects(), MemoryJobStore(Policy(keep_s=60))
    answers = Answers(store, objects)
    won = await taken(store, 1)
    await answers.keep(won, LARGE, now=T0)
    died = await taken(store, 2, attempts=2)  # the first died between its put and its news
    await objects.put(f"jobs/{died.job_id}.1", b"of the first")
    await answers.keep(died, SMALL, now=T0)
    running = await taken(store, 3)
    await objects.put(f"jobs/{running.job_id}.1", b"it may yet say so")
    await objects.put("jobs/job_0123456789abcdef.1", b"of a job that was forgotten")
    await objects.put("jobs/not-ours", b"whatever")

    after, dropped = await answers.collect(after="", count=100)

    assert (after, dropped) == ("", 2)
    assert sorted(objects.values) == [
        f"jobs/{won.job_id}.1",
        f"jobs/{running.job_id}.1",
        "jobs/not-ours",
    ]
    assert await answers.body(await found(store, won.job_id)) == LARGE.body


class Defective(MemoryObjects):
    """Fails once, in a way that nobody foresaw."""

    has_failed = False

    async def keys(self, folder: str, *, after: str, count: int) -> tuple[str, ...]:
        if not self.has_failed:
            self.has_failed = True
            raise KeyError("a defect")
        return await super().keys(folder, after=after, count=count)


def test_a_defect_does_not_end_the_collecting() -> None:
    async def main() -> None:
        objects, tasks = Defective(), TaskSet()
        await objects.put("jobs/job_0123456789abcdef.1", b"of a job that was forgotten")
        collector = Collector(Answers(MemoryJobStore(), objects), is_leading=lambda: True)
        tasks.start(collector.run(), name="answers")
        await asyncio.sleep(1.5 * LOOK_S)
        assert objects.has_failed and objects.values
        await asyncio.sleep(LOOK_S)
        assert not objects.values
        await tasks.close()

    run_virtual(main())


async def test_it_is_collected_a_few_at_a_time() -> None:
    objects = MemoryObjects()
    answers = Answers(MemoryJobStore(), objects)
    for number in range(5):
        await objects.put(f"jobs/job_{number:016x}.1", b"x")

    after, dropped = await answers.collect(after="", count=3)
    assert (dropped, len(objects.values)) == (3, 2)
    assert await answers.collect(after=after, count=3) == ("", 2)


def test_who_leads_goes_round_and_a_store_that_is_down_is_tried_again() -> None:
    async def main() -> None:
        objects, tasks, is_leading = MemoryObjects(), TaskSet(), False
        collector = Collector(Answers(MemoryJobStore(), objects), is_leading=lambda: is_leading)
        await objects.put("jobs/job_0123.1", b"nobody's")
        tasks.start(collector.run(), name="collector")
        await asyncio.sleep(3 * LOOK_S)
        assert objects.values, "another's affair"
        is_leading, objects.is_up = True, False
        await asyncio.sleep(LOOK_S)
        objects.is_up = True
        await asyncio.sleep(LOOK_S)
        assert objects.values == {}
        await tasks.close()

    run_virtual(main())


async def found(store: MemoryJobStore, job_id: JobId) -> Job:
    job = await store.get(job_id, tenant=NOBODY)
    assert job is not None
    return job
