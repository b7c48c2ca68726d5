"""What must hold of all that was seen, whatever went wrong; pure."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from benchmarks.chaos.records import Absence, Ending, JobSeen, Records, Seen
from control_plane.queue.job import MOVES
from infra.contracts.job import JobState

# What a request whose caller waits may be told. Redis is not on its way: not that it is away.
EXPECTED = frozenset(
    {
        "replica_lost",
        "replica_failed",
        "no_capacity",
        "shutting_down",
        "cold_start_timeout",
        "queue_timeout",
        "execution_timeout",
        "queue_full",
        "client_too_slow",
    }
)
_BAD = frozenset({Ending.SILENT, Ending.WRONG, Ending.HUNG})
_MARGIN_S = 0.5  # a client notices a little before or after we do


def violations(records: Records, answers: Mapping[int, str]) -> list[str]:
    """Every invariant that does not hold, in words; none if all do."""
    return [
        *records.wrongs,
        *_of_requests(records.seen, records.absences),
        *_of_jobs(records.jobs.values(), answers),
        *_of_keys(records.ids_of_key),
        *_of_webhooks(records),
        *_of_the_bill(records),
    ]


def _of_requests(seen: Iterable[Seen], absences: list[Absence]) -> Iterator[str]:
    """Every request is answered, or told why not in a typed way."""
    for one in seen:
        took_s = one.ended_at - one.began_at
        what = f"{one.kind} after {took_s:.1f} s: {one.ending} {one.code} {one.detail}"[:300]
        match one.ending:
            case Ending.PROBLEM | Ending.EVENT if one.code not in EXPECTED:
                yield what
            case Ending.UNREACHED if not _meets(one, absences):
                yield what
            case Ending.CUT if not _meets(one, [it for it in absences if it.is_sudden]):
                yield what
            case ending if ending in _BAD:
                yield what


def _meets(one: Seen, absences: Iterable[Absence]) -> bool:
    return any(
        one.began_at - _MARGIN_S <= it.ended_at and it.began_at - _MARGIN_S <= one.ended_at
        for it in absences
    )


def _of_jobs(jobs: Iterable[JobSeen], answers: Mapping[int, str]) -> Iterator[str]:
    """An accepted job has one end, which stays, and the right answer if it has one."""
    for job in jobs:
        seen = list(dict.fromkeys(zip(job.states, job.states[1:], strict=False)))
        for before, after in seen:
            if before is not after and not _can_become(before, after):
                yield f"{job.job_id} went from {before} to {after}"
        last = job.states[-1] if job.states else None
        if last is None or not last.is_over:
            yield f"{job.job_id} has no end: {last}"
        elif last is JobState.CANCELLED and not job.is_cancelled:
            yield f"{job.job_id} was cancelled by nobody"
        elif last in {JobState.FAILED, JobState.EXPIRED}:
            yield f"{job.job_id} is {last}: {job.result}"
        elif last is JobState.SUCCEEDED and job.result != answers[job.question]:
            yield f"{job.job_id} has the wrong answer {job.result!r}"


def _can_become(before: JobState, after: JobState) -> bool:
    """Between two looks several moves may be made; redrive is not used here."""
    if before.is_over:
        return False
    return after in MOVES[before] or after in {JobState.QUEUED, JobState.RUNNING}


def _of_keys(ids_of_key: Mapping[str, set[str]]) -> Iterator[str]:
    for key, ids in ids_of_key.items():
        if len(ids) > 1:
            yield f"{key} is of {len(ids)} jobs"


def _of_webhooks(records: Records) -> Iterator[str]:
    """Who asked for it is told of the end, as it is, and nobody else."""
    told: dict[str, set[str]] = {}
    for job_id, state in records.told:
        told.setdefault(job_id, set()).add(state)
    for job in records.jobs.values():
        its, last = told.get(job.job_id, set()), str(job.states[-1] if job.states else None)
        if not job.is_told:
            if its:
                yield f"{job.job_id} asked for no webhook"
        elif job.webhook == "delivered" and not its:
            yield f"{job.job_id} is said to be told, and nobody was"
        elif not job.is_done or its - {last}:
            yield f"{job.job_id} is {last}; webhook {job.webhook}, told {sorted(its)}"


def _of_the_bill(records: Records) -> Iterator[str]:
    """No answer is billed twice. (What was used in the second before a kill may be lost.)"""
    used = sum(job.tokens for job in records.jobs.values())
    if records.billed_tokens > used:
        yield f"jobs were billed {records.billed_tokens} tokens and used {used}"


def defects_in(log: str) -> Counter[str]:
    """Events of the platform's own log that tell of a defect of ours, not of what was done."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        if line.startswith(("Traceback", "Fatal")) or "was never" in line:
            found[line[:120]] += 1
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "exception" in entry:
            last = str(entry["exception"]).strip().splitlines()[-1]
            found[f"{entry.get('event')}: {last[:150]}"] += 1
    return found


def summary(records: Records) -> str:
    """How requests and jobs ended, in two lines."""
    endings = Counter(f"{one.kind} {one.code or one.ending}" for one in records.seen)
    states = Counter(str(job.states[-1]) if job.states else "?" for job in records.jobs.values())
    requests = ", ".join(f"{name} {count}" for name, count in sorted(endings.items()))
    jobs = ", ".join(f"{name} {count}" for name, count in sorted(states.items()))
    return f"{len(records.seen)} requests: {requests}\n{len(records.jobs)} jobs: {jobs}"
