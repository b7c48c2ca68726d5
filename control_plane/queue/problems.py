"""What goes wrong with jobs, as errors and as the problem a job carries."""

from control_plane.queue.job import Job
from control_plane.queue.order import NewJob
from control_plane.queue.store import Policy
from infra.errors import (
    IdempotencyKeyReused,
    JobAbandoned,
    JobNotFound,
    JobNotOver,
    JobOver,
    JobsFull,
    JobWithoutAnswer,
    PlatformError,
    StoreUnavailable,
)


def as_json(error: PlatformError) -> bytes:
    """The error as a job keeps it."""
    return error.problem().model_dump_json(exclude_none=True).encode()


ABANDONED = as_json(
    JobAbandoned(
        "too many processes that ran the job died", hint="`platform jobs redrive` tries it again"
    )
)


def job_not_found(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"there is no job {job_id}", hint="`platform jobs ls` lists those that are kept"
    )


def may_be_kept(error: StoreUnavailable, new: NewJob) -> StoreUnavailable:
    """What is told of an order whose call failed; it is known to be kept when it is sent again."""
    if new.idempotency is None:
        hint = "send it again; with an Idempotency-Key it would be one job for certain"
    else:
        hint = "send it again with the same Idempotency-Key: it is one job, however often it comes"
    detail = f"it is not known whether the job was kept: {error.detail}"
    return StoreUnavailable(detail, hint=hint, **error.facts)


def key_reused(job: Job) -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        f"the Idempotency-Key belongs to job {job.job_id}, which was asked something else",
        hint="use a new key for a new request",
        job_id=job.job_id,
    )


def jobs_full(kept_bytes: int, policy: Policy) -> JobsFull:
    return JobsFull(
        f"{kept_bytes} bytes of jobs are kept already",
        hint="try again later, or raise PLATFORM_JOBS_MAX_BYTES",
        limit_bytes=policy.most_bytes,
        retry_after_s=10,
    )


def not_over(job: Job) -> JobNotOver:
    return JobNotOver(
        f"job {job.job_id} is {job.state}",
        hint="ask again later, or name a webhook when it is sent",
        state=job.state,
        retry_after_s=1,
    )


def is_over(job: Job, wanted: str) -> JobOver:
    return JobOver(f"job {job.job_id} {job.state}; it cannot be {wanted}", state=job.state)


def without_answer(job: Job) -> JobWithoutAnswer:
    return JobWithoutAnswer(f"job {job.job_id} {job.state}, so it has no answer", state=job.state)
