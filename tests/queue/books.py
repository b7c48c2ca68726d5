"""The books of the jobs in Redis: every index has to agree with the jobs themselves."""

from collections.abc import Sequence

from redis.asyncio import Redis

from control_plane.queue.job import Job
from control_plane.queue.redis_store import BASE
from control_plane.queue.store import JOB_BYTES
from infra.contracts.job import JobState


async def check_books(redis: Redis, jobs: Sequence[Job]) -> None:
    """Asserts that queue depth is the sum of the states, and so on for `jobs`, which are all."""

    async def members(name: str) -> set[str]:
        return {it.decode() for it in await redis.zrange(f"{BASE}:{name}", 0, -1)}

    async def named(pattern: str) -> list[str]:
        return [it.decode() for it in await redis.keys(f"{BASE}:{pattern}:*")]

    states = {state: {j.job_id for j in jobs if j.state is state} for state in JobState}
    queues = [await members(name.removeprefix(f"{BASE}:")) for name in await named("queue")]
    assert set().union(*queues) == states[JobState.QUEUED]
    assert await members("leases") == states[JobState.RUNNING]
    assert await members("over") == {job.job_id for job in jobs if job.state.is_over}
    assert await members("deadlines") == states[JobState.QUEUED] | states[JobState.RUNNING]
    owned = [await redis.smembers(name) for name in await named("owned")]
    assert {it.decode() for its in owned for it in its} == states[JobState.RUNNING]
    told = {j.job_id for j in jobs if j.webhook is not None and j.webhook.due_at is not None}
    assert await members("webhooks") == told
    kept = len(jobs) * JOB_BYTES
    for kind in ("body", "answer"):
        kept += sum([await redis.strlen(f"{BASE}:{kind}:{job.job_id}") for job in jobs])
    assert int(await redis.get(f"{BASE}:bytes") or 0) == kept
