"""Jobs for tests, and a store that checks its books after every step."""

from dataclasses import replace
from typing import Any

from control_plane.queue.job import Answer, Job, Verdict, Webhook
from control_plane.queue.order import Idempotency, NewJob, Order, Terms
from control_plane.queue.store import Failure, JobStore
from infra.contracts.base import JobId, ModelName, RequestId
from infra.contracts.tenancy import TenantName

T0 = 1_700_000_000.0
NOBODY = TenantName("nobody")
CHAT = ModelName("chat")
BODY = b'{"prompt": "hi"}'
HOOK = "https://example.com/told"
PROBLEM = (
    b'{"type":"/problems/replica-lost","title":"Replica lost","status":502,"detail":"it died",'
    b'"error":{"message":"it died","type":"server_error","code":"replica_lost"}}'
)


def a_job(number: int = 1, *, webhook: str | None = None, **changes: Any) -> Job:
    """A job that sorts by its number."""
    job = Job(
        job_id=JobId(f"job_{number:024d}"),
        tenant=NOBODY,
        model=CHAT,
        model_owner=NOBODY,
        path="/invoke",
        request_id=RequestId(f"req_{number}"),
        created_at=T0,
        updated_at=T0,
        deadline_at=T0 + 3600,
        max_attempts=3,
        webhook=None if webhook is None else Webhook(webhook),
    )
    return replace(job, **changes)


def a_new(job: Job, *, key: Idempotency | None = None) -> NewJob:
    """What becomes this job."""
    webhook_url = None if job.webhook is None else job.webhook.url
    terms = Terms(job.deadline_at - job.created_at, job.max_attempts, webhook_url)
    order = Order(
        *(job.tenant, job.model, job.model_owner, job.path, job.request_id, BODY),
        terms,
    )
    return NewJob(job.job_id, job.created_at, order, key)


async def accept(
    store: JobStore, job: Job, *, key: Idempotency | None = None, now: float = T0
) -> NewJob | Job:
    """Leaves one job; raises why it is not accepted."""
    [outcome] = await store.accept([a_new(job, key=key)], now=now)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def an_answer(body: bytes = b"ok", **changes: Any) -> Answer:
    return replace(Answer(status=200, content_type="application/json", size=len(body)), **changes)


def a_failure(verdict: Verdict = Verdict.RETRY, *, retry_at: float = T0) -> Failure:
    return Failure(verdict, PROBLEM, retry_at)
