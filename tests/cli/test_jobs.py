import json

import httpx

from infra.contracts.job import JobState, JobStatus
from infra.errors import JobNotOver, ReplicaLost
from tests.cli.conftest import Run
from tests.cli.fake_platform import FakePlatform, as_json, problem

JOB_ID = "job_019ab2c3d4e50123456789abcdef"
JOB = JobStatus(
    id=JOB_ID,
    model="chat",
    state=JobState.QUEUED,
    request_id="req_1",
    created_at=1_700_000_000,
    updated_at=1_700_000_000,
    deadline_at=1_700_086_400,
    attempts=0,
    failures=0,
    max_attempts=3,
    is_dead_letter=False,
)
DEAD = JOB.model_copy(
    update={
        "id": "job_0000000000000000000000000000",
        "state": JobState.FAILED,
        "attempts": 3,
        "is_dead_letter": True,
        "problem": ReplicaLost("it died\x1b[2J").problem(),
    }
)


def shown(job: JobStatus, status: int = 200) -> httpx.Response:
    return httpx.Response(status, content=job.model_dump_json())


def test_a_job_is_left_with_a_key_and_its_id_printed_alone(
    run: Run, platform: FakePlatform
) -> None:
    platform.answer("POST /v1/models/chat/invoke", shown(JOB, 202))

    outcome = run("invoke", "chat", "--prompt", "hi", "--async")

    assert (outcome.code, outcome.out) == (0, f"{JOB_ID}\n")
    assert f"platform jobs show {JOB_ID}" in outcome.err
    headers = platform.requests[0].headers
    assert headers["prefer"] == "respond-async" and len(headers["idempotency-key"]) == 32


def test_nobody_reads_the_stream_of_a_job(run: Run) -> None:
    assert run("invoke", "chat", "--prompt", "hi", "--async", "--stream").code == 2


def test_jobs_are_listed_with_what_went_wrong(run: Run, platform: FakePlatform) -> None:
    data = [job.model_dump(mode="json") for job in (JOB, DEAD)]
    platform.answer("GET /v1/jobs", as_json({"data": data, "next": None}))

    asked = ("--model", "chat", "--state", "failed", "--tenant", "acme")
    lines = run("jobs", "ls", *asked).out.splitlines()

    assert [line.split()[:4] for line in lines] == [
        ["JOB", "MODEL", "STATE", "ATTEMPTS"],
        [JOB_ID, "chat", "queued", "0"],
        [DEAD.id, "chat", "failed", "3"],
    ]
    assert lines[2].endswith("dead letter: it died[2J")
    assert dict(platform.requests[0].url.params) == {
        "model": "chat",
        "state": "failed",
        "tenant": "acme",
        "limit": "20",
    }


def test_pages_are_followed_until_there_are_enough(run: Run, platform: FakePlatform) -> None:
    full = {"data": [JOB.model_dump(mode="json")] * 100, "next": JOB_ID}
    empty = {"data": [], "next": JOB_ID}
    platform.answer("GET /v1/jobs", as_json(full), as_json(empty), as_json(full))

    found = json.loads(run("jobs", "ls", "--last", "150", "--json").out)

    assert len(found) == 200  # this platform gives more than it is asked for
    assert [dict(it.url.params).get("after") for it in platform.requests] == [None, JOB_ID, JOB_ID]
    assert [dict(it.url.params)["limit"] for it in platform.requests] == ["100", "50", "50"]


def test_a_job_is_shown_with_its_result(run: Run, platform: FakePlatform) -> None:
    done = JOB.model_copy(
        update={
            "state": JobState.SUCCEEDED,
            "started_at": 1_700_000_002,
            "finished_at": 1_700_000_005,
        }
    )
    platform.answer(f"GET /v1/jobs/{JOB_ID}", shown(done))
    platform.answer(f"GET /v1/jobs/{JOB_ID}/result", as_json({"output": "hello"}))

    outcome = run("jobs", "show", JOB_ID)

    assert json.loads(outcome.out) == {"output": "hello"}
    assert "succeeded" in outcome.err and "waited 2.0 s, ran 3.0 s" in outcome.err
    assert json.loads(run("jobs", "show", JOB_ID, "--result").out) == {"output": "hello"}
    assert JobStatus.model_validate_json(run("jobs", "show", JOB_ID, "--json").out) == done


def test_a_result_that_is_not_there_is_an_error(run: Run, platform: FakePlatform) -> None:
    refusal = JobNotOver(f"job {JOB_ID} is queued", hint="ask again later")
    platform.answer(f"GET /v1/jobs/{JOB_ID}/result", problem(refusal))

    outcome = run("jobs", "show", JOB_ID, "--result")

    assert (outcome.code, outcome.out) == (1, "")
    assert f"error: job {JOB_ID} is queued" in outcome.err


def test_cancelling_and_redriving_say_what_became_of_the_job(
    run: Run, platform: FakePlatform
) -> None:
    platform.answer(
        f"DELETE /v1/jobs/{JOB_ID}", shown(JOB.model_copy(update={"state": JobState.CANCELLED}))
    )
    platform.answer(f"POST /v1/jobs/{JOB_ID}/redrive", shown(JOB, 202))

    assert f"{JOB_ID} is cancelled" in run("jobs", "cancel", JOB_ID).err
    assert f"{JOB_ID} is queued" in run("jobs", "redrive", JOB_ID).err
