"""Where the bodies of answers are: small ones with the job, large ones in the object store."""

from dataclasses import dataclass

from control_plane.queue.executor import Answered
from control_plane.queue.job import Answer, Job
from control_plane.queue.store import JobStore
from infra.contracts.base import JobId
from infra.objectstore.port import ObjectStore

INLINE_BYTES = 64 << 10


@dataclass(frozen=True)
class Answers:
    """Keeps and finds them."""

    store: JobStore
    objects: ObjectStore
    inline_bytes: int = INLINE_BYTES

    async def keep(self, job: Job, answered: Answered, *, now: float) -> bool:
        """Finishes the job's attempt with its answer; False where the job was over before.

        May be repeated. Raises StoreUnavailable.
        """
        size = len(answered.body)
        answer = Answer(answered.status, answered.content_type, size)
        if size <= self.inline_bytes:
            return await self.store.finish(job.job_id, job.attempt, answer, answered.body, now=now)
        key = _key(job.job_id, job.attempt)
        await self.objects.put(key, answered.body)
        stored = Answer(answered.status, answered.content_type, size, is_stored=True)
        has_won = await self.store.finish(job.job_id, job.attempt, stored, b"", now=now)
        if not has_won:
            await self.objects.delete(key)
        return has_won

    async def body(self, job: Job) -> bytes | None:
        """The body of a finished job's answer; None if it is gone. Raises StoreUnavailable."""
        assert job.answer is not None
        if job.answer.is_stored:
            return await self.objects.get(_key(job.job_id, job.winner))
        if job.answer.size == 0:
            return b""
        return await self.store.answer(job.job_id, tenant=job.tenant)

    async def forget(self, job: Job) -> None:
        """Drops what the object store has of a job."""
        if job.answer is not None and job.answer.is_stored:
            await self.objects.delete(_key(job.job_id, job.winner))


def _key(job_id: JobId, attempt: int) -> str:
    return f"jobs/{job_id}.{attempt}"
