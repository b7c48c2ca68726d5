"""What chaos calls a broken promise, and a short run of it against the real platform."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import tiny_model
from benchmarks.chaos.plan import Kind, faults
from benchmarks.chaos.records import Absence, Ending, JobSeen, Records, Seen
from benchmarks.chaos.run import Run
from benchmarks.chaos.verdict import defects_in, violations
from infra.contracts.job import JobState

ANSWERS = {0: "Paris"}
ANSWERED = Seen("ask", 10.0, 11.0, Ending.ANSWERED)
QUEUED, RUNNING, SUCCEEDED = JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED


def test_a_seed_is_a_course_of_faults() -> None:
    assert list(islice(faults(7), 50)) == list(islice(faults(7), 50))
    assert list(islice(faults(7), 50)) != list(islice(faults(8), 50))
    drawn = {fault.kind for _, fault in islice(faults(7), 300)}
    assert drawn == set(Kind), "everything that can go wrong does"


@pytest.mark.parametrize(
    ("seen", "is_allowed"),
    [
        (ANSWERED, True),
        (replace(ANSWERED, ending=Ending.PROBLEM, code="replica_lost"), True),
        (replace(ANSWERED, ending=Ending.EVENT, code="shutting_down"), True),
        (replace(ANSWERED, ending=Ending.PROBLEM, code="internal"), False),
        (replace(ANSWERED, ending=Ending.PROBLEM, code="store_unavailable"), False),
        (replace(ANSWERED, ending=Ending.PROBLEM, code="unauthorized"), False),
        (replace(ANSWERED, ending=Ending.PROBLEM, code="untyped: <html>"), False),
        (replace(ANSWERED, ending=Ending.LEFT), True),
        (replace(ANSWERED, ending=Ending.SILENT), False),
        (replace(ANSWERED, ending=Ending.WRONG), False),
        (replace(ANSWERED, ending=Ending.HUNG), False),
        (replace(ANSWERED, ending=Ending.UNREACHED), False),
        (replace(ANSWERED, ending=Ending.CUT), False),
    ],
)
def test_a_request_is_answered_or_told_why_not(seen: Seen, is_allowed: bool) -> None:
    assert (violations(Records(seen=[seen]), ANSWERS) == []) is is_allowed


@pytest.mark.parametrize(
    ("ending", "is_sudden", "is_allowed"),
    [
        (Ending.UNREACHED, True, True),
        (Ending.UNREACHED, False, True),
        (Ending.CUT, True, True),
        (Ending.CUT, False, False),  # who stops in order cuts nobody off
        (Ending.SILENT, True, False),
    ],
)
def test_a_connection_may_end_with_the_process_it_led_to(
    ending: Ending, is_sudden: bool, is_allowed: bool
) -> None:
    seen = [replace(ANSWERED, ending=ending)]
    absences = [Absence(10.8, 14.0, is_sudden)]
    elsewhere = [Absence(20.0, 24.0, is_sudden)]

    assert (violations(Records(seen=seen, absences=absences), ANSWERS) == []) is is_allowed
    assert violations(Records(seen=seen, absences=elsewhere), ANSWERS)


@pytest.mark.parametrize(
    ("states", "result", "is_cancelled", "is_allowed"),
    [
        ([QUEUED, RUNNING, SUCCEEDED], "Paris", False, True),
        ([RUNNING, QUEUED, RUNNING, SUCCEEDED], "Paris", False, True),
        ([JobState.CANCELLED], None, True, True),
        ([SUCCEEDED, RUNNING, SUCCEEDED], "Paris", False, False),
        ([RUNNING, JobState.CANCELLED], None, False, False),
        ([JobState.CANCELLED, SUCCEEDED], "Paris", True, False),
        ([SUCCEEDED], "London", False, False),
        ([JobState.FAILED], "it died", False, False),
        ([RUNNING], None, False, False),
        ([], None, False, False),
    ],
)
def test_a_job_has_one_end_and_the_right_answer(
    states: list[JobState], result: str | None, is_cancelled: bool, is_allowed: bool
) -> None:
    job = JobSeen("job_1", 0, states, is_cancelled, result)
    assert (violations(Records(jobs={"job_1": job}), ANSWERS) == []) is is_allowed


def test_a_key_of_two_jobs_is_a_broken_promise() -> None:
    assert violations(Records(ids_of_key={"key": {"job_1"}}), ANSWERS) == []
    assert violations(Records(ids_of_key={"key": {"job_1", "job_2"}}), ANSWERS)


@pytest.mark.parametrize(
    ("webhook", "told", "is_allowed"),
    [
        ("delivered", ["succeeded"], True),
        ("delivered", ["succeeded", "succeeded"], True),
        ("given-up", [], True),
        ("delivered", [], False),
        ("waiting", [], False),
        ("delivered", ["running", "succeeded"], False),
        ("delivered", ["forged"], False),
        ("", [], False),
    ],
)
def test_a_webhook_tells_of_the_end_as_it_is(
    webhook: str, told: list[str], is_allowed: bool
) -> None:
    job = JobSeen("job_1", 0, [SUCCEEDED], result="Paris", is_told=True, webhook=webhook)
    records = Records(jobs={"job_1": job}, told=[("job_1", it) for it in told])
    assert (violations(records, ANSWERS) == []) is is_allowed


def test_no_more_is_billed_than_was_used() -> None:
    job = JobSeen("job_1", 0, [SUCCEEDED], result="Paris", tokens=30)
    for billed, is_allowed in ((0, True), (30, True), (60, False)):
        records = Records(jobs={"job_1": job}, billed_tokens=billed)
        assert (violations(records, ANSWERS) == []) is is_allowed


def test_defects_are_found_in_the_log_and_warnings_are_none() -> None:
    log = """
{"event": "redis.ended", "level": "error", "code": -9}
{"event": "jobs.step-failed", "exception": "Traceback …\\nValueError: no", "level": "error"}
{"event": "jobs.step-failed", "exception": "Traceback …\\nValueError: no", "level": "error"}
Task exception was never retrieved
Traceback (most recent call last):
"""
    assert dict(defects_in(log)) == {
        "jobs.step-failed: ValueError: no": 2,
        "Task exception was never retrieved": 1,
        "Traceback (most recent call last):": 1,
    }


@pytest.mark.real
@pytest.mark.timeout(600)
def test_half_a_minute_of_chaos_breaks_no_promise(
    environment: dict[str, str], smollm2_dir: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    model = tiny_model(tmp_path / "tiny", smollm2_dir)
    run = Run(model, environment, seed=7, say=told.append)

    run.go(seconds=30, keep=None)

    assert run.broken == [], "\n".join(told)
    assert len(run.records.seen) > 25 and len(run.records.jobs) > 3
