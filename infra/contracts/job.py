"""Jobs, which are durable asynchronous invocations, as the API shows them."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from infra.contracts.base import Contract, JobId, ModelName, RequestId
from infra.contracts.problem import Problem


class JobState(StrEnum):
    """Where a job is; the last four are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_over(self) -> bool:
        return self not in {JobState.QUEUED, JobState.RUNNING}


class JobAnswer(Contract):
    """What the model answered, but for the body, which is at `/v1/jobs/{id}/result`."""

    status: int
    content_type: str
    bytes: int = Field(description="Size of the body.")


class WebhookCall(Contract):
    """One time that the caller's address was told of the job's end."""

    at: float = Field(description="Unix seconds.")
    outcome: str = Field(description="The status it answered with, or why it could not be told.")


class WebhookStatus(Contract):
    """Whether the caller's address knows of the job's end."""

    url: str
    state: Literal["waiting", "delivered", "given-up"]
    calls: tuple[WebhookCall, ...] = ()


class JobStatus(Contract):
    """One job; times are unix seconds."""

    id: JobId
    object: Literal["job"] = "job"
    model: ModelName
    state: JobState
    request_id: RequestId = Field(description="Names it in cold-start reports.")
    created_at: float
    updated_at: float
    started_at: float | None = Field(default=None, description="When it was last given a replica.")
    finished_at: float | None = None
    deadline_at: float = Field(description="When it expires unless it is over.")
    kept_until: float | None = Field(default=None, description="When it is forgotten.")
    attempts: int = Field(description="Executions so far.")
    failures: int = Field(description="Failed executions that count against `max_attempts`.")
    max_attempts: int
    is_dead_letter: bool = Field(description="It failed as often as it may; `redrive` tries again.")
    answer: JobAnswer | None = None
    problem: Problem | None = Field(default=None, description="Why the last execution failed.")
    webhook: WebhookStatus | None = None


class JobList(Contract):
    """A page of jobs, newest first; `next` goes into `after` to get the next one."""

    object: Literal["list"] = "list"
    data: tuple[JobStatus, ...]
    next: JobId | None = None
