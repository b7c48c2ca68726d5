"""What callers can do with jobs: leave one, look at it, end it, try it again, fetch its answer."""

import re
from collections.abc import Callable

from control_plane.queue import problems
from control_plane.queue.acceptance import Acceptance, Told
from control_plane.queue.answers import Answers
from control_plane.queue.job import Job
from control_plane.queue.order import Order
from control_plane.queue.store import JobStore, Page
from infra.clock import Clock
from infra.contracts.base import JobId, ModelName
from infra.contracts.job import JobState
from infra.contracts.tenancy import TenantName

_ID = re.compile(r"job_[0-9a-f]{28}")


class Jobs:
    """Every method raises StoreUnavailable, and those with an id JobNotFound; to `tenant` None, an
    admin, they find everybody's.

    `waits` and `abort` are the dispatcher's.
    """

    def __init__(
        self,
        store: JobStore,
        answers: Answers,
        *,
        clock: Clock,
        waits: Callable[[ModelName], None],
        abort: Callable[[JobId], None],
    ) -> None:
        self._store = store
        self._answers = answers
        self._clock = clock
        self._waits = waits
        self._abort = abort
        self._acceptance = Acceptance(store, clock=clock, waits=waits)

    def accept(self, order: Order, told: Told) -> None:
        """See Acceptance.accept."""
        self._acceptance.accept(order, told)

    async def get(self, job_id: str, *, tenant: TenantName | None) -> Job:
        job = await self._store.get(_checked(job_id), tenant=tenant)
        return _found(job, job_id)

    async def page(
        self,
        *,
        tenant: TenantName,
        model: ModelName | None,
        state: JobState | None,
        after: str | None,
        count: int,
    ) -> Page:
        """Jobs that match, newest first."""
        last = None if after is None else _checked(after)
        return await self._store.page(
            tenant=tenant, model=model, state=state, after=last, count=count
        )

    async def cancel(self, job_id: str, *, tenant: TenantName | None) -> Job:
        """Ends a job, and its execution; raises JobOver where it ended in another way."""
        now = self._clock.now()
        job = _found(await self._store.cancel(_checked(job_id), tenant=tenant, now=now), job_id)
        if job.state is not JobState.CANCELLED:
            raise problems.is_over(job, "cancelled")
        self._abort(job.job_id)
        return job

    async def redrive(self, job_id: str, *, tenant: TenantName | None) -> Job:
        """Queues a failed job again, with as much time as it had; raises JobOver for others."""
        job, now = await self.get(job_id, tenant=tenant), self._clock.now()
        deadline_at = now + job.deadline_at - job.created_at
        redriven = _found(
            await self._store.redrive(job.job_id, tenant=tenant, deadline_at=deadline_at, now=now),
            job_id,
        )
        if redriven.state.is_over:
            raise problems.is_over(redriven, "redriven")
        self._waits(redriven.model)
        return redriven

    async def answer(self, job_id: str, *, tenant: TenantName | None) -> tuple[Job, bytes]:
        """A job that is over, with the body of its answer; b"" if it failed.

        Raises JobNotOver, and JobWithoutAnswer if it was cancelled or expired.
        """
        job = await self.get(job_id, tenant=tenant)
        match job.state:
            case JobState.SUCCEEDED:
                body = await self._answers.body(job)
                if body is None:
                    raise problems.job_not_found(job_id)
                return job, body
            case JobState.FAILED:
                return job, b""
            case JobState.QUEUED | JobState.RUNNING:
                raise problems.not_over(job)
            case _:
                raise problems.without_answer(job)


def _checked(job_id: str) -> JobId:
    if _ID.fullmatch(job_id) is None:
        raise problems.job_not_found(job_id[:64])
    return JobId(job_id)


def _found(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise problems.job_not_found(job_id)
    return job
