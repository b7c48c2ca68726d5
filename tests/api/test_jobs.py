"""Jobs through the whole control plane in memory, from `Prefer: respond-async` to the result."""

import asyncio
import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.tenancy.identity import Identity
from infra.contracts.base import ModelName
from infra.contracts.job import JobStatus
from infra.contracts.tenancy import TenantName
from infra.errors import ReplicaLost
from tests.activator.world import says
from tests.api.test_tenants import ROOT, Headers, counting, deploy, with_keys
from tests.api.world import KEEP_S, WEBHOOK_SECRET, EdgeWorld, Exchange, scenario
from tests.fleet.makers import a_spec

ASYNC = {"prefer": "respond-async"}
PROMPT = {"prompt": "hi", "max_tokens": 4}


async def leave(
    edge: EdgeWorld,
    body: Any = PROMPT,
    *,
    path: str = "/v1/models/chat/invoke",
    **headers: str,
) -> Exchange:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await edge.call("POST", path, body, headers=ASYNC | named)


async def accepted(edge: EdgeWorld, **headers: str) -> str:
    exchange = await leave(edge, **headers)
    assert exchange.status == 202, exchange.text
    return str(exchange.json()["id"])


async def shown(edge: EdgeWorld, job_id: str) -> JobStatus:
    exchange = await edge.call("GET", f"/v1/jobs/{job_id}")
    assert exchange.status == 200, exchange.text
    return JobStatus.model_validate_json(exchange.content)


async def until_over(edge: EdgeWorld, job_id: str, *, seconds: float = 600) -> JobStatus:
    for _ in range(int(seconds * 10)):
        status = await shown(edge, job_id)
        if status.state.is_over:
            return status
        await asyncio.sleep(0.1)
    raise AssertionError(f"not over: {status}")


async def until_running(edge: EdgeWorld) -> None:
    for _ in range(1000):
        if edge.replicas.running:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("no replica got it")


def work(edge: EdgeWorld) -> None:
    for name, loop in edge.jobs.loops():
        edge.world.tasks.start(loop, name=name)


def fails(status: int, slug: str) -> Any:
    async def script(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(status, [(b"content-type", b"application/problem+json")])
        problem = ReplicaLost("said the replica").problem().model_dump()
        await wire.write(orjson.dumps(problem | {"status": status, "type": f"/problems/{slug}"}))

    return script


@scenario
async def test_a_job_is_answered_202_wakes_the_model_and_keeps_the_answer(edge: EdgeWorld) -> None:
    work(edge)
    exchange = await leave(edge)
    assert exchange.status == 202
    assert exchange.headers["preference-applied"] == "respond-async"
    job_id = exchange.json()["id"]
    assert exchange.headers["location"] == f"/v1/jobs/{job_id}"
    assert exchange.json()["state"] == "queued"

    status = await until_over(edge, job_id)

    assert status.state == "succeeded"
    assert (status.attempts, status.failures) == (1, 0)
    result = await edge.call("GET", f"/v1/jobs/{job_id}/result")
    assert (result.status, result.headers["content-type"]) == (200, "application/json")
    assert result.json() == {"text": "hello"}
    assert [sent.request.body for sent in edge.replicas.sent] == [orjson.dumps(PROMPT)]
    assert edge.replicas.sent[0].request.path == "/invoke"


@scenario
async def test_openai_routes_leave_jobs_too(edge: EdgeWorld) -> None:
    work(edge)
    bodies = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
        "/v1/embeddings": {"input": ["hi", "ho"]},
    }
    for path, body in bodies.items():
        exchange = await leave(edge, {"model": "chat", **body}, path=path)
        await until_over(edge, exchange.json()["id"])
    assert [sent.request.path for sent in edge.replicas.sent] == list(bodies)


@scenario
async def test_a_job_is_checked_as_a_request_is(edge: EdgeWorld) -> None:
    for body, status in ((b"{", 400), ({"max_tokens": 4}, 400), (PROMPT | {"stream": True}, 400)):
        exchange = await leave(edge, body)
        assert (exchange.status, exchange.problem()["status"]) == (status, status)
    nowhere = await leave(edge, path="/v1/models/nothing/invoke")
    assert nowhere.status == 404
    assert await edge.job_store.backlog() == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("firstlight-deadline", "0"),
        ("firstlight-deadline", "soon"),
        ("firstlight-deadline", "nan"),
        ("firstlight-deadline", "1e9"),
        ("firstlight-deadline", "9999999"),
        ("firstlight-max-attempts", "0"),
        ("firstlight-max-attempts", "11"),
        ("firstlight-max-attempts", "³"),
        ("idempotency-key", ""),
        ("idempotency-key", "k" * 256),
        ("idempotency-key", "a\tb"),
        ("firstlight-webhook", "http://example.com/"),
        ("firstlight-webhook", "ftp://example.com/"),
        ("firstlight-webhook", "https://"),
        ("firstlight-webhook", "https://example.com/a b"),
        ("firstlight-webhook", "https://example.com/ü"),
        ("firstlight-webhook", "https://me:you@example.com/"),
        ("firstlight-webhook", "https://example.com:0/"),
        ("firstlight-webhook", "https://example.com:99999/"),
        ("firstlight-webhook", "https://169.254.169.254/latest/meta-data"),
        ("firstlight-webhook", "https://[::ffff:127.0.0.1]/"),
        ("firstlight-webhook", "https://[::1"),
        ("firstlight-webhook", "file:///etc/passwd"),
    ],
)
def test_terms_that_make_no_sense_are_refused(name: str, value: str) -> None:
    @scenario
    async def test(edge: EdgeWorld) -> None:
        exchange = await leave(edge, **{name: value})
        assert exchange.status == 400
        assert exchange.problem()["error"]["param"].lower() == name
        assert await edge.job_store.backlog() == ()

    test()


@scenario
async def test_other_preferences_do_not_make_a_job(edge: EdgeWorld) -> None:
    for prefer in ("wait=10", "respond-asynchronously", "return=minimal"):
        exchange = await leave(edge, prefer=prefer)
        assert exchange.status == 200
    for prefer in ("wait=10, respond-async", "Respond-Async; foo"):
        exchange = await leave(edge, prefer=prefer)
        assert exchange.status == 202


@scenario
async def test_a_key_gives_the_same_job_and_refuses_another_request(edge: EdgeWorld) -> None:
    first = await accepted(edge, idempotency_key="k1")
    assert await accepted(edge, idempotency_key="k1") == first
    assert await accepted(edge, idempotency_key="k2") != first
    for changed in (
        await leave(edge, PROMPT | {"max_tokens": 5}, idempotency_key="k1"),
        await leave(edge, idempotency_key="k1", firstlight_deadline="5"),
    ):
        assert changed.status == 409
        assert changed.problem()["type"] == "/problems/idempotency-key-reused"


@scenario
async def test_results_that_are_not_there_say_why(edge: EdgeWorld) -> None:
    queued, cancelled = await accepted(edge), await accepted(edge)
    await edge.call("DELETE", f"/v1/jobs/{cancelled}")
    expected = {
        queued: (409, "job-not-over"),
        cancelled: (410, "job-without-answer"),
        "job_" + "0" * 28: (404, "job-not-found"),
        "nonsense": (404, "job-not-found"),
    }
    for job_id, (status, slug) in expected.items():
        exchange = await edge.call("GET", f"/v1/jobs/{job_id}/result")
        assert (exchange.status, exchange.problem()["type"]) == (status, f"/problems/{slug}")


@scenario
async def test_a_large_answer_goes_to_the_object_store_and_with_its_job(edge: EdgeWorld) -> None:
    work(edge)
    edge.script = says("x" * 100_000)
    job_id = await accepted(edge)
    status = await until_over(edge, job_id)
    assert [len(value) for value in edge.objects.values.values()] == [100_011]
    assert status.answer is not None and status.answer.bytes == 100_011
    result = await edge.call("GET", f"/v1/jobs/{job_id}/result")
    assert result.json() == {"text": "x" * 100_000}
    await asyncio.sleep(KEEP_S + 5)
    assert (await edge.call("GET", f"/v1/jobs/{job_id}")).status == 404
    assert edge.objects.values == {}


@scenario
async def test_an_object_store_that_is_down_keeps_no_job_from_running(edge: EdgeWorld) -> None:
    work(edge)
    edge.script = says("x" * 100_000)
    await until_over(edge, await accepted(edge))
    edge.objects.is_up = False
    await asyncio.sleep(KEEP_S + 5)
    large = await accepted(edge)
    await asyncio.sleep(60)
    assert (await shown(edge, large)).state == "running", "its answer is held until it can be kept"
    edge.script = says("small")
    for replica_id in edge.replicas.scripts:
        edge.replicas.scripts[replica_id] = says("small")
    assert (await until_over(edge, await accepted(edge))).state == "succeeded"
    edge.objects.is_up = True
    assert (await until_over(edge, large)).attempts == 1


@scenario
async def test_a_running_job_that_is_cancelled_is_aborted_at_once(edge: EdgeWorld) -> None:
    work(edge)
    edge.script = says("never", seconds=500)
    job_id = await accepted(edge)
    await until_running(edge)
    cancelled = await edge.call("DELETE", f"/v1/jobs/{job_id}")
    assert (cancelled.status, cancelled.json()["state"]) == (200, "cancelled")
    await edge.settled()
    assert edge.replicas.running == 0
    assert edge.replicas.aborted, "the replica saw its caller leave"
    again = await edge.call("DELETE", f"/v1/jobs/{job_id}")
    assert again.json() == cancelled.json()
    assert edge.lines.demand_of("chat").concurrency == 0  # type: ignore[arg-type]


@scenario
async def test_a_job_cancelled_while_it_waits_reaches_no_replica(edge: EdgeWorld) -> None:
    job_id = await accepted(edge)
    await edge.call("DELETE", f"/v1/jobs/{job_id}")
    work(edge)
    await asyncio.sleep(30)
    assert edge.is_asleep()


@scenario
async def test_transient_failures_are_retried_then_the_job_is_a_dead_letter(
    edge: EdgeWorld,
) -> None:
    work(edge)
    edge.script = fails(500, "internal")
    job_id = await accepted(edge)
    status = await until_over(edge, job_id)
    assert (status.state, status.failures, status.is_dead_letter) == ("failed", 3, True)
    result = await edge.call("GET", f"/v1/jobs/{job_id}/result")
    assert (result.status, result.problem()["detail"]) == (500, "said the replica")

    for replica_id in edge.replicas.scripts:
        edge.replicas.scripts[replica_id] = says("at last")
    edge.script = says("at last")
    redriven = await edge.call("POST", f"/v1/jobs/{job_id}/redrive")
    assert (redriven.status, redriven.json()["state"]) == (202, "queued")
    status = await until_over(edge, job_id)
    assert (status.state, status.attempts) == ("succeeded", 4)
    over = await edge.call("POST", f"/v1/jobs/{job_id}/redrive")
    assert (over.status, over.problem()["type"]) == (409, "/problems/job-over")
    late = await edge.call("DELETE", f"/v1/jobs/{job_id}")
    assert (late.status, late.problem()["type"]) == (409, "/problems/job-over")


@scenario
async def test_what_the_replica_refuses_is_not_tried_again(edge: EdgeWorld) -> None:
    work(edge)
    edge.script = fails(400, "context-length-exceeded")
    status = await until_over(edge, await accepted(edge))
    assert (status.state, status.attempts, status.is_dead_letter) == ("failed", 1, False)
    assert status.problem is not None
    assert status.problem.type == "/problems/context-length-exceeded"


@scenario
async def test_a_job_of_a_deleted_model_fails_at_once(edge: EdgeWorld) -> None:
    job_id = await accepted(edge)
    await edge.call("DELETE", "/v1/models/chat")
    work(edge)
    status = await until_over(edge, job_id)
    assert status.problem is not None and status.problem.type == "/problems/model-not-found"


@scenario
async def test_a_deadline_ends_a_job_that_runs(edge: EdgeWorld) -> None:
    work(edge)
    edge.script = says("never", seconds=500)
    job_id = await accepted(edge, firstlight_deadline="30")
    status = await until_over(edge, job_id)
    assert status.state == "expired"
    assert status.finished_at is not None
    assert 30 <= status.finished_at - status.created_at < 32
    await edge.settled()
    assert edge.replicas.running == 0


@scenario
async def test_a_pile_of_jobs_is_worked_off_at_the_rate_of_the_permits(edge: EdgeWorld) -> None:
    most_running = most_held = 0
    edge.script = says("done", seconds=1)
    ids = [await accepted(edge) for _ in range(100)]
    work(edge)
    while True:
        await asyncio.sleep(0.25)
        edge.lines.check_integrity()
        demand = edge.lines.demand_of("chat")  # type: ignore[arg-type]
        most_held = max(most_held, demand.waiting)
        most_running = max(most_running, demand.in_flight)
        counts = await edge.job_store.counts()
        if all(state.is_over for _, state in counts):
            break
    assert most_held <= 1, "they wait in the store, not in the line"
    assert most_running == 32, "every permit is used"
    states = {(await shown(edge, job_id)).state for job_id in ids}
    assert states == {"succeeded"}
    assert len(edge.replicas.sent) == 100


@scenario
async def test_jobs_leave_permits_to_who_waits(edge: EdgeWorld) -> None:
    edge.script = says("done", seconds=1)
    work(edge)
    for _ in range(200):
        await accepted(edge)
    await asyncio.sleep(3)
    waits = []
    for _ in range(20):
        started_at = asyncio.get_running_loop().time()
        assert (await edge.chat()).status == 200
        waits.append(asyncio.get_running_loop().time() - started_at)
    assert max(waits) < 2.1, "behind one generation at most"


@scenario
async def test_jobs_are_listed_newest_first_and_filtered(edge: EdgeWorld) -> None:
    ids = []
    for _ in range(5):
        ids.append(await accepted(edge))
        await asyncio.sleep(0.01)
    await edge.call("DELETE", f"/v1/jobs/{ids[0]}")
    first = (await edge.call("GET", "/v1/jobs?limit=3")).json()
    rest = (await edge.call("GET", f"/v1/jobs?limit=3&after={first['next']}")).json()
    assert [job["id"] for job in first["data"] + rest["data"]] == ids[::-1]
    assert rest["next"] is None
    found = (await edge.call("GET", "/v1/jobs?state=cancelled&model=chat")).json()
    assert [job["id"] for job in found["data"]] == ids[:1]
    assert (await edge.call("GET", "/v1/jobs?state=lost")).status == 400


@scenario
async def test_a_stopping_platform_gives_its_jobs_back_and_the_next_runs_them(
    edge: EdgeWorld,
) -> None:
    work(edge)
    edge.script = says("never", seconds=500)
    job_id = await accepted(edge)
    await until_running(edge)
    await edge.activator.drain(within_s=1)
    await asyncio.sleep(3)
    status = await shown(edge, job_id)
    assert (status.state, status.failures, status.attempts) == ("queued", 0, 1)


@scenario
async def test_metrics_tell_of_jobs(edge: EdgeWorld) -> None:
    work(edge)
    await until_over(edge, await accepted(edge))
    await asyncio.sleep(2)
    text = (await edge.call("GET", "/metrics")).text
    assert 'firstlight_jobs{model="chat",state="succeeded"} 1.0' in text
    assert 'firstlight_job_executions_total{model="chat",outcome="answered"} 1.0' in text


@with_keys
async def test_a_job_of_another_tenant_is_a_404_everywhere(
    edge: EdgeWorld, acme: Headers, beta: Headers
) -> None:
    await deploy(edge, acme, "shared", shared=True)
    left = await leave(edge, path="/v1/models/shared/invoke", **acme)
    job_id = left.json()["id"]
    for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", ""), ("POST", "/redrive")):
        exchange = await edge.call(method, f"/v1/jobs/{job_id}{path}", headers=beta)
        assert (exchange.status, exchange.problem()["type"]) == (404, "/problems/job-not-found")
    for headers, expected in ((beta, []), (acme, [job_id])):
        listed = await edge.call("GET", "/v1/jobs", headers=headers)
        assert [job["id"] for job in listed.json()["data"]] == expected
    same = await leave(edge, path="/v1/models/shared/invoke", **beta, idempotency_key="k")
    other = await leave(edge, path="/v1/models/shared/invoke", **acme, idempotency_key="k")
    assert same.json()["id"] != other.json()["id"], "keys of tenants do not mix"


@with_keys
async def test_an_admin_sees_everybodys_jobs(edge: EdgeWorld, acme: Headers, beta: Headers) -> None:
    await deploy(edge, acme, "shared", shared=True)
    job_id = (await leave(edge, path="/v1/models/shared/invoke", **acme)).json()["id"]
    listed = await edge.call("GET", "/v1/jobs?tenant=acme", headers=ROOT)
    assert [job["id"] for job in listed.json()["data"]] == [job_id]
    assert (await edge.call("GET", "/v1/jobs", headers=ROOT)).json()["data"] == []
    forbidden = await edge.call("GET", "/v1/jobs?tenant=acme", headers=beta)
    assert (forbidden.status, forbidden.problem()["type"]) == (403, "/problems/forbidden")
    assert (await edge.call("GET", f"/v1/jobs/{job_id}", headers=ROOT)).status == 200
    cancelled = await edge.call("DELETE", f"/v1/jobs/{job_id}", headers=ROOT)
    assert cancelled.json()["state"] == "cancelled"


async def slow_counting(request: ReplicaRequest, wire: Wire) -> None:
    await asyncio.sleep(5)
    await counting(request, wire)


@scenario
async def test_a_job_is_billed_once_however_often_it_was_executed(edge: EdgeWorld) -> None:
    work(edge)
    edge.script = slow_counting
    job_id = await accepted(edge)
    await until_running(edge)
    # the store takes our execution for dead, and a process that then dies begins another
    now = edge.world.clock.now()
    await edge.job_store.renew("local", {}, now=now)
    await edge.job_store.take(ModelName("chat"), 1, owner="other", now=now)
    status = await until_over(edge, job_id)
    await asyncio.sleep(30)
    assert (status.state, status.attempts) == ("succeeded", 3)
    today = datetime.fromtimestamp(edge.world.clock.now(), UTC).date()
    (row,) = await edge.usage.rows(since=today, until=today)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (1, 11, 4)
    duplicates = "firstlight_job_duplicate_executions_total"
    assert f'{duplicates}{{model="chat"}} 1.0' in (await edge.call("GET", "/metrics")).text


@scenario
async def test_a_job_does_not_run_on_another_tenants_namesake(edge: EdgeWorld) -> None:
    job_id = await accepted(edge)
    await edge.call("DELETE", "/v1/models/chat")
    them = Identity(TenantName("them"))
    await edge.world.deployments.deploy(a_spec("chat"), by=them, now=edge.world.clock.now())
    work(edge)
    status = await until_over(edge, job_id)
    assert status.problem is not None and status.problem.type == "/problems/model-not-found"
    assert not edge.replicas.sent


# -- webhooks ------------------------------------------------------------------------------------

HOOK = "https://example.com/told?by=us"


@scenario
async def test_the_end_of_a_job_is_told_signed(edge: EdgeWorld) -> None:
    work(edge)
    job_id = await accepted(edge, firstlight_webhook=HOOK)
    await until_over(edge, job_id)
    await asyncio.sleep(1)
    ((url, headers, body),) = edge.webhooks.calls
    assert url == HOOK
    told = orjson.loads(body)
    assert (told["type"], told["data"]["id"]) == ("job.succeeded", job_id)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(WEBHOOK_SECRET.encode(), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    webhook = (await shown(edge, job_id)).webhook
    assert webhook is not None
    assert (webhook.state, [call.outcome for call in webhook.calls]) == ("delivered", ["200"])


@scenario
async def test_a_webhook_is_tried_again_under_one_id_until_it_is_taken(edge: EdgeWorld) -> None:
    work(edge)
    edge.webhooks.answers = [503, "no connection", 302, 204]
    job_id = await accepted(edge, firstlight_webhook=HOOK)
    await asyncio.sleep(300)
    webhook = (await shown(edge, job_id)).webhook
    assert webhook is not None and webhook.state == "delivered"
    assert [call.outcome for call in webhook.calls] == ["503", "no connection", "302", "204"]
    assert len({headers["webhook-id"] for _, headers, _ in edge.webhooks.calls}) == 1


@scenario
async def test_a_webhook_is_given_up_after_so_many_calls(edge: EdgeWorld) -> None:
    work(edge)
    edge.webhooks.answers = [500] * 100
    job_id = await accepted(edge, firstlight_webhook=HOOK)
    await asyncio.sleep(800)
    webhook = (await shown(edge, job_id)).webhook
    assert webhook is not None and webhook.state == "given-up"
    assert (
        len(edge.webhooks.calls) == len(webhook.calls) == edge.job_store.policy.most_webhook_calls
    )


@scenario
async def test_a_cancelled_job_is_told_too(edge: EdgeWorld) -> None:
    job_id = await accepted(edge, firstlight_webhook=HOOK)
    work(edge)
    edge.script = says("never", seconds=500)
    await edge.call("DELETE", f"/v1/jobs/{job_id}")
    await asyncio.sleep(2)
    assert [orjson.loads(body)["type"] for _, _, body in edge.webhooks.calls] == ["job.cancelled"]
