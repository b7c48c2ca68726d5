"""A job as a value, and the moves it may make."""

from dataclasses import dataclass
from enum import StrEnum

from infra.contracts.base import JobId, ModelName, RequestId
from infra.contracts.job import JobAnswer, JobState, JobStatus, WebhookCall, WebhookStatus
from infra.contracts.problem import Problem
from infra.contracts.tenancy import TenantName

# Every legal move; both stores, the script in Redis included, take it from here.
MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {
            JobState.RUNNING,  # a consumer took it
            JobState.SUCCEEDED,  # an execution that was thought dead brought its answer after all
            JobState.FAILED,  # its consumers died so often that it is taken for the cause
            JobState.CANCELLED,
            JobState.EXPIRED,  # its deadline passed
        }
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,  # the execution failed and may be repeated, or its consumer is dead
            JobState.SUCCEEDED,
            JobState.FAILED,  # for good, or as often as it may
            JobState.CANCELLED,
            JobState.EXPIRED,
        }
    ),
    JobState.FAILED: frozenset({JobState.QUEUED}),  # redrive, the only way back
    JobState.SUCCEEDED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


class Verdict(StrEnum):
    """What follows from a failed execution."""

    RETRY = "retry"  # counts; after `max_attempts` of them the job is a dead letter
    POSTPONE = "postpone"  # it never reached a replica: does not count, the deadline bounds it
    GIVE_UP = "give-up"  # the same call will fail again


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered; `is_stored` says that the body is in the object store."""

    status: int
    content_type: str
    size: int
    is_stored: bool = False


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to tell of the end; `due_at` is None once that is done with."""

    url: str
    due_at: float | None = None
    is_delivered: bool = False
    calls: tuple[WebhookCall, ...] = ()

    def status(self, *, is_over: bool) -> WebhookStatus:
        if self.is_delivered:
            return WebhookStatus(url=self.url, state="delivered", calls=self.calls)
        is_given_up = is_over and self.due_at is None
        state = "given-up" if is_given_up else "waiting"
        return WebhookStatus(url=self.url, state=state, calls=self.calls)


@dataclass(frozen=True, slots=True)
class Job:
    """A durable invocation; times are unix seconds.

    `attempt` numbers executions and never goes back: it tells a late one from the current one.
    `failures` counts those of them that count. `settled` is the last attempt whose failure was
    taken note of, `winner` the one whose answer is the job's.
    """

    job_id: JobId
    tenant: TenantName
    model: ModelName
    model_owner: TenantName  # when it was accepted: a namesake of another tenant is another model
    path: str
    request_id: RequestId
    created_at: float
    updated_at: float
    deadline_at: float
    max_attempts: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    failures: int = 0
    reclaims: int = 0
    settled: int = 0
    winner: int = 0
    owner: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    kept_until: float | None = None
    is_dead_letter: bool = False
    is_idempotent: bool = False
    answer: Answer | None = None
    problem: bytes | None = None  # as JSON
    webhook: Webhook | None = None

    def status_json(self) -> bytes:
        """What its caller gets to see."""
        return self.status().model_dump_json(exclude_none=True).encode()

    def status(self) -> JobStatus:
        """What its caller gets to see."""
        answer = self.answer
        return JobStatus(
            id=self.job_id,
            model=self.model,
            state=self.state,
            request_id=self.request_id,
            created_at=self.created_at,
            updated_at=self.updated_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            deadline_at=self.deadline_at,
            kept_until=self.kept_until,
            attempts=self.attempt,
            failures=self.failures,
            max_attempts=self.max_attempts,
            is_dead_letter=self.is_dead_letter,
            answer=answer
            and JobAnswer(
                status=answer.status, content_type=answer.content_type, bytes=answer.size
            ),
            problem=None if self.problem is None else Problem.model_validate_json(self.problem),
            webhook=self.webhook and self.webhook.status(is_over=self.state.is_over),
        )
