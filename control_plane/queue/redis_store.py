"""Jobs in Redis: every change is one call of `jobs.lua`, so it happens wholly or not at all.

Keys (all in one hash slot), below `{firstlight}:jobs`:

* `:job:<id>`         hash, the job; times in ms
* `:body:<id>`        the request's body, until the job is over for good
* `:answer:<id>`      the answer's body, unless it is in the object store
* `:of:<tenant>`      sorted set of ids, which sort by age
* `:waiting`          set of models that have a queue
* `:queue:<model>`    sorted set, id → when it is due
* `:leases`           sorted set, id → when its lease ends; the running jobs
* `:owned:<owner>`    set of ids; the same, by consumer
* `:deadlines`        sorted set, id → deadline, of what is not over
* `:over`             sorted set, id → when it is forgotten
* `:webhooks`         sorted set, id → when its end is told next
* `:idempotency:<tenant>:<digest of the key>`  `<id> <digest of the request>`, expires
* `:counts`           hash, `<model>|<state>` → jobs
* `:bytes`            bytes of bodies and answers, and JOB_BYTES for each job

A stream with a consumer group would hold the queue as well; it has no way to delay a retry, to
withdraw what was cancelled, or to count what waits, so the group is spelt out: an owner's jobs,
their leases, and the hand-back of what its owner does not renew.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Protocol

from control_plane.queue.job import MOVES, Answer, Job, Webhook
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
from infra.contracts.base import JobId, ModelName, RequestId
from infra.contracts.job import JobState, WebhookCall
from infra.contracts.tenancy import TenantName
from infra.redis_function import Argument, RedisFunction

BASE = "{firstlight}:jobs"
BATCH = 100

_READS = frozenset({"get", "answer", "page", "backlog", "counts"})


class Run(Protocol):
    """Calls `jobs.lua`; raises StoreUnavailable."""

    async def __call__(self, arguments: Sequence[Argument], *, reads: bool = False) -> Any: ...


_SOURCE = files("control_plane.queue").joinpath("jobs.lua").read_text()


class RedisJobStore:
    """The JobStore that survives a restart."""

    def __init__(self, run: Run, policy: Policy = Policy()) -> None:  # noqa: B008 - frozen value
        self._run = run
        self._policy = policy

    @property
    def policy(self) -> Policy:
        return self._policy

    async def accept(self, new: Sequence[NewJob], *, now: float) -> tuple[Outcome, ...]:
        arguments: list[Argument] = []
        for job_id, created_at, order, idempotency in new:
            key, fingerprint = idempotency or ("", "")
            tenant, model, model_owner, path, request_id, body, terms = order
            deadline_at = created_at + terms.deadline_s
            arguments += (job_id, tenant, model, _ms(deadline_at), key, fingerprint, body)
            arguments += (path, request_id, model_owner, _ms(created_at))
            arguments += (terms.max_attempts, terms.webhook_url or "")
        outcomes = await self._call("accept", now, *arguments)
        return tuple(map(self._accepted, new, outcomes))

    def _accepted(self, new: NewJob, outcome: Any) -> Outcome:
        if outcome == 1:
            return new
        word, found = outcome
        match word.decode():
            case "known":
                return _job(found)
            case "mismatch":
                return key_reused(_job(found))
            case _:
                return jobs_full(int(found), self._policy)

    async def get(self, job_id: JobId, *, tenant: TenantName | None) -> Job | None:
        return _job_or_none(await self._call("get", 0, job_id, tenant or ""))

    async def answer(self, job_id: JobId, *, tenant: TenantName | None) -> bytes | None:
        body: bytes | None = await self._call("answer", 0, job_id, tenant or "")
        return body

    async def page(
        self,
        *,
        tenant: TenantName,
        model: ModelName | None,
        state: JobState | None,
        after: JobId | None,
        count: int,
    ) -> Page:
        found, following = await self._call(
            *("page", 0, tenant, model or "", state or "", after or "", count, MOST_SCANNED)
        )
        return Page(
            tuple(map(_job, found)), None if following is None else JobId(following.decode())
        )

    async def cancel(self, job_id: JobId, *, tenant: TenantName | None, now: float) -> Job | None:
        return _job_or_none(await self._call("cancel", now, job_id, tenant or ""))

    async def redrive(
        self, job_id: JobId, *, tenant: TenantName | None, deadline_at: float, now: float
    ) -> Job | None:
        found = await self._call("redrive", now, job_id, tenant or "", _ms(deadline_at))
        return _job_or_none(found)

    # -- consumers -----------------------------------------------------------------------------

    async def backlog(self) -> tuple[Backlog, ...]:
        found = await self._call("backlog", 0)
        return tuple(
            Backlog(ModelName(model.decode()), waiting, float(due) / 1000)
            for model, waiting, due in found
        )

    async def take(
        self, model: ModelName, count: int, *, owner: str, now: float
    ) -> tuple[Taken, ...]:
        found = await self._call("take", now, model, count, owner)
        return tuple(Taken(_job((job_id, fields)), body) for job_id, fields, body in found)

    async def renew(self, owner: str, held: Mapping[JobId, int], *, now: float) -> frozenset[JobId]:
        pairs: list[Argument] = [part for pair in held.items() for part in pair]
        return frozenset(_ids(await self._call("renew", now, owner, *pairs)))

    async def reclaim(self, *, now: float) -> tuple[JobId, ...]:
        return _ids(await self._call("reclaim", now))

    async def finish(
        self, job_id: JobId, attempt: int, answer: Answer, body: bytes, *, now: float
    ) -> bool:
        has_won = await self._call(
            *("finish", now, job_id, attempt, answer.status, answer.content_type, answer.size),
            *(int(answer.is_stored), body),
        )
        return bool(has_won)

    async def fail(
        self, job_id: JobId, attempt: int, failure: Failure, *, now: float
    ) -> JobState | None:
        state = await self._call(
            *("fail", now, job_id, attempt, failure.verdict),
            *(_ms(failure.retry_at), failure.problem),
        )
        return None if state is None else JobState(state.decode())

    # -- housekeeping --------------------------------------------------------------------------

    async def expire(self, *, now: float) -> tuple[JobId, ...]:
        return _ids(await self._call("expire", now))

    async def forgettable(self, *, now: float) -> tuple[Job, ...]:
        return tuple(map(_job, await self._call("forgettable", now)))

    async def forget(self, job_ids: tuple[JobId, ...]) -> None:
        await self._call("forget", 0, *job_ids)

    async def counts(self) -> Mapping[tuple[ModelName, JobState], int]:
        counts = {}
        for field, count in _pairs(await self._call("counts", 0)):
            model, _, state = field.partition("|")
            counts[ModelName(model), JobState(state)] = int(count)
        return counts

    # -- webhooks ------------------------------------------------------------------------------

    async def take_webhooks(self, count: int, *, now: float) -> tuple[Job, ...]:
        return tuple(map(_job, await self._call("take_webhooks", now, count)))

    async def settle_webhook(
        self, job_id: JobId, number: int, report: WebhookReport, *, now: float
    ) -> None:
        retry_at = "" if report.retry_at is None else _ms(report.retry_at)
        await self._call(
            *("settle_webhook", now, job_id, number, report.outcome),
            *(int(report.is_delivered), retry_at),
        )

    async def _call(self, verb: str, now: float, *arguments: Argument) -> Any:
        return await self._run((verb, _ms(now), *arguments), reads=verb in _READS)


def job_function(url: str, policy: Policy) -> RedisFunction:
    """How RedisJobStore reaches a server; to be closed by who made it."""
    return RedisFunction(url, "firstlight_jobs", lua(policy), BASE)


def lua(policy: Policy) -> str:
    """The function, with the moves and the policy it holds to above it."""
    moves = ", ".join(
        f"{state} = {{{', '.join(f'{to} = true' for to in sorted(MOVES[state]))}}}"
        for state in MOVES
    )
    numbers = {
        "LEASE": _ms(policy.lease_s),
        "KEEP": _ms(policy.keep_s),
        "KEEP_DEAD": _ms(policy.keep_dead_s),
        "IDEMPOTENCY": _ms(policy.idempotency_s),
        "MOST_BYTES": policy.most_bytes,
        "MOST_RECLAIMS": policy.most_reclaims,
        "MOST_WEBHOOK_CALLS": policy.most_webhook_calls,
        "WEBHOOK_LEASE": _ms(policy.webhook_lease_s),
        "JOB_BYTES": JOB_BYTES,
        "BATCH": BATCH,
    }
    constants = "\n".join(f"local {name} = {number}" for name, number in numbers.items())
    texts = f"local MOVES = {{{moves}}}\nlocal ABANDONED = [==[{ABANDONED.decode()}]==]"
    return f"{texts}\n{constants}\n{_SOURCE}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _ids(found: list[bytes]) -> tuple[JobId, ...]:
    return tuple(JobId(job_id.decode()) for job_id in found)


def _pairs(flat: list[bytes]) -> list[tuple[str, str]]:
    words = [word.decode() for word in flat]
    return list(zip(words[::2], words[1::2], strict=True))


def _job_or_none(found: Any) -> Job | None:
    return None if found is None else _job(found)


def _job(found: Any) -> Job:
    job_id, flat = found
    fields = dict(_pairs(flat))

    def seconds(name: str) -> float | None:
        return float(fields[name]) / 1000 if name in fields else None

    def number(name: str) -> int:
        return int(fields.get(name, 0))

    return Job(
        job_id=JobId(job_id.decode()),
        tenant=TenantName(fields["tenant"]),
        model=ModelName(fields["model"]),
        model_owner=TenantName(fields["model_owner"]),
        path=fields["path"],
        request_id=RequestId(fields["request_id"]),
        created_at=float(fields["created_at"]) / 1000,
        updated_at=float(fields.get("updated_at", fields["created_at"])) / 1000,
        deadline_at=float(fields["deadline_at"]) / 1000,
        max_attempts=number("max_attempts"),
        state=JobState(fields["state"]),
        attempt=number("attempt"),
        failures=number("failures"),
        reclaims=number("reclaims"),
        settled=number("settled"),
        winner=number("winner"),
        owner=fields.get("owner", ""),
        started_at=seconds("started_at"),
        finished_at=seconds("finished_at"),
        kept_until=seconds("kept_until"),
        is_dead_letter=fields.get("is_dead_letter") == "1",
        is_idempotent=fields.get("is_idempotent") == "1",
        answer=_answer(fields),
        problem=fields.get("problem", "").encode() or None,
        webhook=_webhook(fields),
    )


def _answer(fields: Mapping[str, str]) -> Answer | None:
    if "answer_status" not in fields:
        return None
    return Answer(
        status=int(fields["answer_status"]),
        content_type=fields["answer_type"],
        size=int(fields["answer_size"]),
        is_stored=fields["answer_is_stored"] == "1",
    )


def _webhook(fields: Mapping[str, str]) -> Webhook | None:
    if "webhook" not in fields:
        return None
    calls = []
    for number in range(1, int(fields.get("webhook_calls", 0)) + 1):
        at, _, outcome = fields[f"webhook_call:{number}"].partition(" ")
        calls.append(WebhookCall(at=float(at) / 1000, outcome=outcome))
    due = fields.get("webhook_due")
    return Webhook(
        url=fields["webhook"],
        due_at=None if due is None else float(due) / 1000,
        is_delivered=fields.get("webhook_delivered") == "1",
        calls=tuple(calls),
    )
