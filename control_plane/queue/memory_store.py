"""Jobs that end with the process."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from control_plane.queue.job import MOVES, Answer, Job, Verdict
from control_plane.queue.order import NewJob
from control_plane.queue.problems import ABANDONED, jobs_full, key_reused
from control_plane.queue.store import (
    JOB_BYTES,
    MOST_SCANNED,
    Backlog,
    Failure,
    Outcome,
    Page,
    Policy,
    Taken,
    WebhookReport,
)
from infra.contracts.base import JobId, ModelName
from infra.contracts.job import JobState, WebhookCall
from infra.contracts.tenancy import TenantName

BATCH = 100


class MemoryJobStore:
    """The JobStore of tests and simulations."""

    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008 - frozen value
        self._policy = policy
        self._jobs: dict[JobId, Job] = {}
        self._bodies: dict[JobId, bytes] = {}
        self._answers: dict[JobId, bytes] = {}
        self._due: dict[JobId, float] = {}  # of queued jobs
        self._leases: dict[JobId, float] = {}  # of running jobs
        self._known: dict[tuple[str, str], tuple[JobId, str, float]] = {}

    @property
    def policy(self) -> Policy:
        return self._policy

    async def accept(self, new: Sequence[NewJob], *, now: float) -> tuple[Outcome, ...]:
        return tuple(self._accept(it, now) for it in new)

    def _accept(self, new: NewJob, now: float) -> Outcome:
        job, idempotency = new.job(), new.idempotency
        if job.job_id in self._jobs:
            return new
        if idempotency is not None:
            known_id, fingerprint, until = self._known.get(
                (job.tenant, idempotency.key), (None, "", 0.0)
            )
            if known_id in self._jobs and now < until:
                if fingerprint != idempotency.fingerprint:
                    return key_reused(self._jobs[known_id])
                return self._jobs[known_id]
        kept_bytes = self._kept_bytes()
        if kept_bytes + len(new.order.body) + JOB_BYTES > self._policy.most_bytes:
            return jobs_full(kept_bytes, self._policy)
        if idempotency is not None:
            until = now + self._policy.idempotency_s
            known = (job.job_id, idempotency.fingerprint, until)
            self._known[job.tenant, idempotency.key] = known
        self._jobs[job.job_id] = job
        self._bodies[job.job_id] = new.order.body
        self._due[job.job_id] = now
        return new

    async def get(self, job_id: JobId, *, tenant: TenantName | None) -> Job | None:
        job = self._jobs.get(job_id)
        return job if job is not None and tenant in {None, job.tenant} else None

    async def answer(self, job_id: JobId, *, tenant: TenantName | None) -> bytes | None:
        return self._answers.get(job_id) if await self.get(job_id, tenant=tenant) else None

    async def page(
        self,
        *,
        tenant: TenantName,
        model: ModelName | None,
        state: JobState | None,
        after: JobId | None,
        count: int,
    ) -> Page:
        ids = sorted((it.job_id for it in self._jobs.values() if it.tenant == tenant), reverse=True)
        scanned = [it for it in ids if after is None or it < after][:MOST_SCANNED]
        found: list[Job] = []
        last: JobId | None = None
        for job_id in scanned:
            if len(found) == count:
                return Page(tuple(found), last)
            job = self._jobs[job_id]
            if model in {None, job.model} and state in {None, job.state}:
                found.append(job)
            last = job_id
        return Page(tuple(found), last if len(scanned) == MOST_SCANNED else None)

    async def cancel(self, job_id: JobId, *, tenant: TenantName | None, now: float) -> Job | None:
        job = await self.get(job_id, tenant=tenant)
        if job is not None and not job.state.is_over:
            job = self._move(job, JobState.CANCELLED, now)
        return job

    async def redrive(
        self, job_id: JobId, *, tenant: TenantName | None, deadline_at: float, now: float
    ) -> Job | None:
        job = await self.get(job_id, tenant=tenant)
        if job is None or job.state is not JobState.FAILED:
            return job
        webhook = job.webhook and replace(job.webhook, due_at=None, is_delivered=False, calls=())
        fresh = replace(
            job,
            failures=0,
            reclaims=0,
            is_dead_letter=False,
            deadline_at=deadline_at,
            finished_at=None,
            kept_until=None,
            problem=None,
            webhook=webhook,
        )
        return self._move(fresh, JobState.QUEUED, now, at=now)

    # -- consumers -----------------------------------------------------------------------------

    async def backlog(self) -> tuple[Backlog, ...]:
        due: dict[ModelName, list[float]] = defaultdict(list)
        for job_id, at in self._due.items():
            due[self._jobs[job_id].model].append(at)
        return tuple(Backlog(model, len(all_due), min(all_due)) for model, all_due in due.items())

    async def take(
        self, model: ModelName, count: int, *, owner: str, now: float
    ) -> tuple[Taken, ...]:
        due = sorted(
            (at, job_id)
            for job_id, at in self._due.items()
            if at <= now and self._jobs[job_id].model == model
        )
        taken = []
        for _, job_id in due[:count]:
            job = self._jobs[job_id]
            if job.deadline_at <= now:
                self._move(job, JobState.EXPIRED, now)
                continue
            job = replace(job, owner=owner, attempt=job.attempt + 1, started_at=now)
            lease = now + self._policy.lease_s
            job = self._move(job, JobState.RUNNING, now, at=lease)
            taken.append(Taken(job, self._bodies[job_id]))
        return tuple(taken)

    async def renew(self, owner: str, held: Mapping[JobId, int], *, now: float) -> frozenset[JobId]:
        lease = now + self._policy.lease_s
        lost = set()
        for job_id, attempt in held.items():
            job = self._jobs.get(job_id)
            is_current = job is not None and job.attempt == attempt != job.settled
            if job is None or not is_current or job.state.is_over:
                lost.add(job_id)
            elif job.state is JobState.QUEUED:
                self._move(replace(job, owner=owner), JobState.RUNNING, now, at=lease)
            else:
                self._leases[job_id] = lease
        for job_id in [it for it in self._leases if it not in held]:
            if self._jobs[job_id].owner == owner:
                self._give_back(self._jobs[job_id], now)
        return frozenset(lost)

    async def reclaim(self, *, now: float) -> tuple[JobId, ...]:
        latest = now + self._policy.lease_s
        ids = [job_id for job_id, until in self._leases.items() if not now < until <= latest]
        for job_id in ids[:BATCH]:
            self._give_back(self._jobs[job_id], now)
        return tuple(ids[:BATCH])

    async def finish(
        self, job_id: JobId, attempt: int, answer: Answer, body: bytes, *, now: float
    ) -> bool:
        job = self._jobs.get(job_id)
        if job is None:
            return False
        if job.state.is_over:
            return job.winner == attempt
        if body:
            self._answers[job_id] = body
        won = replace(job, winner=attempt, answer=answer, problem=None)
        self._move(won, JobState.SUCCEEDED, now)
        return True

    async def fail(
        self, job_id: JobId, attempt: int, failure: Failure, *, now: float
    ) -> JobState | None:
        job = self._jobs.get(job_id)
        if job is None or job.attempt != attempt:
            return None
        if job.settled == attempt:
            return job.state
        if job.state is not JobState.RUNNING:
            return None
        failures = job.failures + (failure.verdict is Verdict.RETRY)
        job = replace(job, settled=attempt, problem=failure.problem, failures=failures)
        if failure.verdict is Verdict.RETRY and failures >= job.max_attempts:
            return self._move(replace(job, is_dead_letter=True), JobState.FAILED, now).state
        if failure.verdict is Verdict.GIVE_UP:
            return self._move(job, JobState.FAILED, now).state
        return self._move(job, JobState.QUEUED, now, at=failure.retry_at).state

    # -- housekeeping --------------------------------------------------------------------------

    async def expire(self, *, now: float) -> tuple[JobId, ...]:
        ids = self._where(lambda job: not job.state.is_over and job.deadline_at <= now)
        for job_id in ids:
            self._move(self._jobs[job_id], JobState.EXPIRED, now)
        return ids

    async def forgettable(self, *, now: float) -> tuple[Job, ...]:
        ids = self._where(lambda job: job.kept_until is not None and job.kept_until <= now)
        return tuple(self._jobs[job_id] for job_id in ids)

    async def forget(self, job_ids: tuple[JobId, ...]) -> None:
        for job_id in job_ids:
            job = self._jobs.get(job_id)
            if job is not None and job.state.is_over:
                del self._jobs[job_id]
                self._bodies.pop(job_id, None)
                self._answers.pop(job_id, None)

    async def counts(self) -> Mapping[tuple[ModelName, JobState], int]:
        return Counter((job.model, job.state) for job in self._jobs.values())

    # -- webhooks ------------------------------------------------------------------------------

    async def take_webhooks(self, count: int, *, now: float) -> tuple[Job, ...]:
        taken = []
        for job_id in self._where(_is_to_be_told(now))[:count]:
            job = self._jobs[job_id]
            webhook = job.webhook
            assert webhook is not None
            if len(webhook.calls) >= self._policy.most_webhook_calls:
                self._jobs[job_id] = replace(job, webhook=replace(webhook, due_at=None))
                continue
            call = WebhookCall(at=now, outcome="no word of it")
            until = now + self._policy.webhook_lease_s
            webhook = replace(webhook, due_at=until, calls=(*webhook.calls, call))
            self._jobs[job_id] = replace(job, webhook=webhook)
            taken.append(self._jobs[job_id])
        return tuple(taken)

    async def settle_webhook(
        self, job_id: JobId, number: int, report: WebhookReport, *, now: float
    ) -> None:
        job = self._jobs.get(job_id)
        if job is None or not job.state.is_over or job.webhook is None:
            return
        if len(job.webhook.calls) != number:
            return
        call = WebhookCall(at=now, outcome=report.outcome)
        is_last = number >= self._policy.most_webhook_calls
        webhook = replace(
            job.webhook,
            calls=(*job.webhook.calls[:-1], call),
            is_delivered=report.is_delivered,
            due_at=None if is_last else report.retry_at,
        )
        self._jobs[job_id] = replace(job, webhook=webhook)

    # -- moving --------------------------------------------------------------------------------

    def _move(self, job: Job, to: JobState, now: float, *, at: float = 0.0) -> Job:
        """The one way from state to state; `at` as in `jobs.lua`."""
        assert to in MOVES[job.state], f"illegal move from {job.state} to {to}"
        self._due.pop(job.job_id, None)
        self._leases.pop(job.job_id, None)
        job = replace(job, state=to, updated_at=now)
        match to:
            case JobState.QUEUED:
                self._due[job.job_id] = at
            case JobState.RUNNING:
                self._leases[job.job_id] = at
            case _:
                job = self._closed(job, now)
        self._jobs[job.job_id] = job
        return job

    def _closed(self, job: Job, now: float) -> Job:
        keep_s = self._policy.keep_dead_s if job.is_dead_letter else self._policy.keep_s
        kept_until = now + keep_s
        if job.is_idempotent:
            kept_until = max(kept_until, job.created_at + self._policy.idempotency_s)
        if job.state is not JobState.FAILED:
            self._bodies.pop(job.job_id, None)
        webhook = job.webhook and replace(job.webhook, due_at=now)
        return replace(job, finished_at=now, kept_until=kept_until, webhook=webhook)

    def _give_back(self, job: Job, now: float) -> None:
        job = replace(job, reclaims=job.reclaims + 1)
        if job.reclaims >= self._policy.most_reclaims:
            dead = replace(job, is_dead_letter=True, problem=ABANDONED)
            self._move(dead, JobState.FAILED, now)
        else:
            self._move(job, JobState.QUEUED, now, at=now)

    def _where(self, matches: Callable[[Job], Any]) -> tuple[JobId, ...]:
        return tuple(job.job_id for job in self._jobs.values() if matches(job))[:BATCH]

    def _kept_bytes(self) -> int:
        bodies = [*self._bodies.values(), *self._answers.values()]
        return sum(map(len, bodies)) + JOB_BYTES * len(self._jobs)


def _is_to_be_told(now: float) -> Callable[[Job], bool]:
    def matches(job: Job) -> bool:
        webhook = job.webhook
        return webhook is not None and webhook.due_at is not None and webhook.due_at <= now

    return matches
