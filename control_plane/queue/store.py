"""The port to where jobs are kept, and the values that pass through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from control_plane.queue.job import Answer, Job, Verdict
from control_plane.queue.order import NewJob
from infra.contracts.base import JobId, ModelName
from infra.contracts.job import JobState
from infra.contracts.tenancy import TenantName
from infra.errors import IdempotencyKeyReused, JobsFull

MOST_SCANNED = 1000


@dataclass(frozen=True, slots=True)
class Policy:
    """What a store holds all jobs to, in seconds, bytes and times."""

    lease_s: float = 30
    keep_s: float = 24 * 3600  # a job that is over, and its answer
    keep_dead_s: float = 14 * 24 * 3600  # a dead letter
    idempotency_s: float = 24 * 3600
    most_bytes: int = 1 << 30  # of bodies and answers, and JOB_BYTES for each job
    most_reclaims: int = 20
    most_webhook_calls: int = 8
    webhook_lease_s: float = 60


JOB_BYTES = 1024  # what Redis takes for a job without its bodies, and some more


# The order itself: it is kept from now on, or was by a call before; a job: it has the order's key.
Outcome = NewJob | Job | IdempotencyKeyReused | JobsFull


class Backlog(NamedTuple):
    """A model's waiting jobs; the first is due at `due_at`."""

    model: ModelName
    waiting: int
    due_at: float


class Taken(NamedTuple):
    """A job whose execution number `attempt` is the taker's."""

    job: Job
    body: bytes


class Failure(NamedTuple):
    """A failed execution; `retry_at` is when the next may begin, `problem` is JSON."""

    verdict: Verdict
    problem: bytes
    retry_at: float


class WebhookReport(NamedTuple):
    """How a call ended; `retry_at` is None where no other follows."""

    outcome: str
    is_delivered: bool
    retry_at: float | None


class Page(NamedTuple):
    """Jobs, newest first; `next` is None on the last page."""

    jobs: tuple[Job, ...]
    next: JobId | None


class JobStore(Protocol):
    """Every method is atomic and may be repeated: StoreUnavailable says that it is not known
    whether the change was made, and repeating it finds out.

    A job of another tenant is as one that is not there; to `tenant` None it is there.
    """

    @property
    def policy(self) -> Policy: ...

    async def accept(self, new: Sequence[NewJob], *, now: float) -> tuple[Outcome, ...]:
        """Keeps jobs, one after the other; when it returns, all that were accepted are on disk.

        Gives IdempotencyKeyReused where a key was used for something else, and JobsFull.
        """
        ...

    async def get(self, job_id: JobId, *, tenant: TenantName | None) -> Job | None: ...

    async def answer(self, job_id: JobId, *, tenant: TenantName | None) -> bytes | None:
        """The body of an answer that is not in the object store."""
        ...

    async def page(
        self,
        *,
        tenant: TenantName,
        model: ModelName | None,
        state: JobState | None,
        after: JobId | None,
        count: int,
    ) -> Page:
        """Jobs that match; looks at MOST_SCANNED at a time, so a page may be short of `count`."""
        ...

    async def cancel(self, job_id: JobId, *, tenant: TenantName | None, now: float) -> Job | None:
        """Ends a job that is not over; the job as it is then."""
        ...

    async def redrive(
        self, job_id: JobId, *, tenant: TenantName | None, deadline_at: float, now: float
    ) -> Job | None:
        """Queues a failed job again with all its attempts; the job as it is then."""
        ...

    # -- consumers -----------------------------------------------------------------------------

    async def backlog(self) -> tuple[Backlog, ...]:
        """Models that have waiting jobs."""
        ...

    async def take(
        self, model: ModelName, count: int, *, owner: str, now: float
    ) -> tuple[Taken, ...]:
        """Leases up to `count` jobs that are due, oldest first."""
        ...

    async def renew(self, owner: str, held: Mapping[JobId, int], *, now: float) -> frozenset[JobId]:
        """Says that the owner lives and runs exactly these attempts; returns those it has lost.

        What the store thinks it runs and it does not (its process died, or never heard that it
        took them) is queued again. One that was given up for dead and has not been taken since
        is the owner's again.
        """
        ...

    async def reclaim(self, *, now: float) -> tuple[JobId, ...]:
        """Queues again what owners did not renew in time."""
        ...

    async def finish(
        self, job_id: JobId, attempt: int, answer: Answer, body: bytes, *, now: float
    ) -> bool:
        """The job succeeded with this answer, unless it was over before: the first one wins."""
        ...

    async def fail(
        self, job_id: JobId, attempt: int, failure: Failure, *, now: float
    ) -> JobState | None:
        """The attempt failed; the job's state then, or None if the attempt is not current."""
        ...

    # -- housekeeping --------------------------------------------------------------------------

    async def expire(self, *, now: float) -> tuple[JobId, ...]:
        """Ends jobs whose deadline has passed, a bounded number at a time."""
        ...

    async def forgettable(self, *, now: float) -> tuple[Job, ...]:
        """Jobs that were kept long enough, a bounded number at a time."""
        ...

    async def forget(self, job_ids: tuple[JobId, ...]) -> None:
        """Drops jobs that are over."""
        ...

    async def counts(self) -> Mapping[tuple[ModelName, JobState], int]:
        """Jobs by model and state."""
        ...

    # -- webhooks ------------------------------------------------------------------------------

    async def take_webhooks(self, count: int, *, now: float) -> tuple[Job, ...]:
        """Jobs whose end is to be told now; each counts as a call, told or not."""
        ...

    async def settle_webhook(
        self, job_id: JobId, number: int, report: WebhookReport, *, now: float
    ) -> None:
        """How call `number` of a job went."""
        ...
