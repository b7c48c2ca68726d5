"""Where the bodies of answers are: small ones with the job, large ones in the object store."""

import re
from dataclasses import dataclass

from control_plane.queue.executor import Answered
from control_plane.queue.job import Answer, Job
from control_plane.queue.store import JobStore
from infra.contracts.base import JobId
from infra.objectstore.port import ObjectStore

INLINE_BYTES = 64 << 10

_FOLDER = "jobs"
_KEY = re.compile(rf"{_FOLDER}/(?P<job_id>job_[0-9a-f]+)\.(?P<attempt>[0-9]{{1,9}})")


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

    async def collect(self, *, after: str, count: int) -> tuple[str, int]:
        """Drops objects that are nobody's answer: their process died before the job heard of them.

        Looks at up to `count`; returns the key to go on `after` ("" when all were seen) and how
        many it dropped. Raises StoreUnavailable.
        """
        keys = await self.objects.keys(_FOLDER, after=after, count=count)
        dropped = 0
        for key in keys:
            if await self._is_nobodys(key):
                await self.objects.delete(key)
                dropped += 1
        return (keys[-1] if len(keys) == count else ""), dropped

    async def _is_nobodys(self, key: str) -> bool:
        """An attempt of a job that is not over may still finish with it."""
        named = _KEY.fullmatch(key)
        if named is None:
            return False
        job = await self.store.get(JobId(named["job_id"]), tenant=None)
        if job is None:
            return True
        is_answer = job.answer is not None and job.answer.is_stored
        is_its = is_answer and job.winner == int(named["attempt"])
        return job.state.is_over and not is_its

    async def forget(self, job: Job) -> None:
        """Drops what the object store has of a job."""
        if job.answer is not None and job.answer.is_stored:
            await self.objects.delete(_key(job.job_id, job.winner))


def _key(job_id: JobId, attempt: int) -> str:
    return f"{_FOLDER}/{job_id}.{attempt}"
