"""Routes that are not generation: models, nodes, health, metrics, problems, documentation."""

import asyncio
import contextlib
from typing import Any

import orjson
import pytest

from control_plane.capacity.simulated.script import Script
from infra.contracts.node import ClockReading, DesiredState, Failure, NodeLease
from infra.contracts.revision import ReplicaState
from infra.errors import PlatformError
from tests.api.world import CHAT, EdgeWorld, scenario
from tests.fleet.makers import SOURCE, a_registration
from tests.fleet.world import SLOW
from worker.node.fake_gpus import a_gpu

YAML = f"""
name: poet
source: {SOURCE}
scaling:
  max: 2
"""


# -- models ----------------------------------------------------------------------------------------


@scenario
async def test_a_model_is_deployed_shown_listed_and_deleted(edge: EdgeWorld) -> None:
    spec = {"name": "poet", "source": SOURCE, "scaling": {"max": 2}}

    deployed = await edge.call("PUT", "/v1/models/poet", spec)
    shown = await edge.call("GET", "/v1/models/poet")
    listed = await edge.call("GET", "/v1/models")
    deleted = await edge.call("DELETE", "/v1/models/poet")
    gone = await edge.call("GET", "/v1/models/poet")

    assert (deployed.status, deployed.headers["location"]) == (202, "/v1/models/poet")
    assert deployed.json() == shown.json()
    status = shown.json()
    assert (status["revision"], status["state"], status["replicas"]) == ("poet@1", "idle", [])
    assert status["spec"]["scaling"]["max"] == 2
    assert status["url"] == "http://test/v1/models/poet/invoke"
    assert [(one["id"], one["object"]) for one in listed.json()["data"]] == [
        ("chat", "model"),
        ("poet", "model"),
    ]
    assert (deleted.status, deleted.content) == (204, b"")
    assert (gone.status, gone.problem()["type"]) == (404, "/problems/model-not-found")


@scenario
async def test_a_model_is_explained_with_its_last_decisions_and_what_they_looked_at(
    edge: EdgeWorld,
) -> None:
    await edge.world.deploy("chat")
    await asyncio.sleep(5)
    await edge.call("POST", "/v1/completions", {"model": "chat", "prompt": "Hi"})
    await asyncio.sleep(100)

    explained = (await edge.call("GET", "/v1/models/chat/explain")).json()
    one = (await edge.call("GET", "/v1/models/chat/explain?last=1")).json()

    assert explained["state"] == "idle" and explained["reason"].startswith("idle since ")
    stopped, started, *_ = explained["decisions"]
    assert (started["replicas"], started["reason"]) == (1, "1 waiting, 8 a replica")
    assert (started["inputs"]["desired"], started["inputs"]["waiting"]) == (0, 1)
    assert (stopped["replicas"], stopped["inputs"]["ready"]) == (0, 1)
    assert stopped["inputs"]["idle_s"] >= stopped["inputs"]["grace_s"] > 60
    assert explained["keep_alive"]["is_automatic"] is True
    assert explained["keep_alive"]["grace_s"] == stopped["inputs"]["grace_s"]
    assert one["decisions"] == [stopped]
    assert (await edge.call("GET", "/v1/models/none/explain")).status == 404


@scenario
async def test_a_body_that_is_sent_as_a_form_is_told_what_to_send(edge: EdgeWorld) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}  # as curl -d does

    answer = await edge.call(
        "POST", "/v1/models/chat/warm", b'{"revision": "chat@1"}', headers=form
    )

    assert answer.status == 400
    assert answer.problem()["hint"] == "send the header Content-Type: application/json"


DOWN = Failure(
    code="weights-unavailable",
    detail="cannot download oci://registry:5000/chat: connection refused",
    is_permanent=False,
    hint="check that the source is up",
)


@scenario
async def test_a_replica_that_cannot_start_is_told_with_the_cause_the_place_and_a_hint(
    edge: EdgeWorld,
) -> None:
    edge.world.capacity.next_scripts.extend([Script(fails_after=1, failure=DOWN)] * 3)
    call = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.world.until(lambda: edge.world.moves(ReplicaState.FAILED))
    climbing = (await edge.call("GET", "/v1/models/chat")).json()
    await call.done()
    later = await edge.chat()
    shown = (await edge.call("GET", "/v1/models/chat")).json()
    explained = (await edge.call("GET", "/v1/models/chat/explain")).json()

    why = f"{DOWN.detail} (on node local)"
    assert climbing["state"] == "starting"
    assert climbing["reason"].endswith(f"last failure: {why}") and climbing["hint"] == DOWN.hint
    for answer in (call, later):
        problem = answer.problem()
        assert (answer.status, problem["cause"]) == (503, DOWN.code)
        assert problem["detail"] == f"replicas of chat@1 cannot start: {why}"
        assert problem["hint"] == DOWN.hint
        assert "retry-after" in answer.headers
    for told in (shown, explained):
        assert told["state"] == "failing" and why in told["reason"]
        assert told["hint"] == DOWN.hint


@scenario
async def test_who_waits_no_longer_hears_why_the_last_replica_failed(edge: EdgeWorld) -> None:
    edge.world.capacity.next_scripts.extend([Script(fails_after=1, failure=DOWN), SLOW, SLOW])
    limits = ("firstlight-cold-start-timeout", "firstlight-wait-timeout")
    calls = [
        edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT), headers={limit: "5"})
        for limit in limits
    ]

    for call in calls:
        await call.done()
        problem = call.problem()
        assert (call.status, problem["hint"]) == (504, DOWN.hint)
        assert problem["detail"].endswith(
            f"within 5 s; the last one failed: {DOWN.detail} (on node local)"
        )
    await edge.world.until(lambda: edge.world.alive() == [ReplicaState.READY])
    await edge.world.until(lambda: not edge.world.alive(), seconds=7200)
    edge.world.capacity.next_scripts.append(SLOW)
    late = await edge.call("POST", "/v1/chat/completions", CHAT, headers={limits[0]: "5"})

    assert late.status == 504 and late.problem()["detail"].endswith("within 5 s")


@pytest.mark.parametrize("kind", ["application/yaml", "text/yaml; charset=utf-8"])
def test_a_spec_may_be_yaml(kind: str) -> None:
    @scenario
    async def check(edge: EdgeWorld) -> None:
        body = YAML.encode()

        first = await edge.call("PUT", "/v1/models/poet", body, headers={"content-type": kind})
        second = await edge.call("PUT", "/v1/models/poet", body, headers={"content-type": kind})

        assert first.status == second.status == 202
        assert second.json()["revision"] == "poet@1", "an equal spec changes nothing"

    check()


BAD_SPECS: dict[str, tuple[bytes, str, int, str]] = {
    "not json": (b"{", "application/json", 400, "malformed-json"),
    "a list": (b"[]", "application/json", 400, "invalid-request"),
    "unknown key": (
        orjson.dumps({"name": "poet", "source": SOURCE, "scalling": {}}),
        *("application/json", 422, "spec-invalid"),
    ),
    "another name": (
        orjson.dumps({"name": "bard", "source": SOURCE}),
        *("application/json", 422, "spec-invalid"),
    ),
    "min over max": (
        (YAML + "  min: 3\n").encode(),
        *("application/yaml", 422, "spec-invalid"),
    ),
    "python tag": (b"!!python/object/apply:os.system [x]", "text/yaml", 422, "spec-invalid"),
    "latin-1": (b"name: \xe9", "application/yaml", 400, "malformed-json"),
    "too large": (b" " * (300 << 10), "application/yaml", 413, "body-too-large"),
    "no such source": (
        orjson.dumps({"name": "poet", "source": "file:///nowhere"}),
        *("application/json", 422, "source-invalid"),
    ),
}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_a_bad_spec_is_a_problem_and_deploys_nothing(name: str) -> None:
    body, kind, status, slug = BAD_SPECS[name]

    @scenario
    async def check(edge: EdgeWorld) -> None:
        exchange = await edge.call("PUT", "/v1/models/poet", body, headers={"content-type": kind})

        assert (exchange.status, exchange.problem()["type"]) == (status, f"/problems/{slug}")
        assert [one.model for one in edge.world.deployments.all()] == ["chat"]

    check()


@scenario
async def test_a_model_shows_its_replicas_and_its_load(edge: EdgeWorld) -> None:
    held = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.settled()

    starting = (await edge.call("GET", "/v1/models/chat")).json()
    await held.done()
    ready = (await edge.call("GET", "/v1/models/chat")).json()

    assert (starting["state"], starting["waiting"], starting["desired_replicas"]) == (
        "starting",
        1,
        1,
    )
    assert [replica["state"] for replica in starting["replicas"]] != []
    assert (ready["state"], ready["in_flight"], ready["waiting"]) == ("ready", 0, 0)
    assert [replica["state"] for replica in ready["replicas"]] == ["ready"]


@scenario
async def test_a_deleted_model_takes_its_reports_with_it(edge: EdgeWorld) -> None:
    await edge.chat()

    await edge.call("DELETE", "/v1/models/chat")

    assert (await edge.call("GET", "/v1/models/chat/coldstarts")).status == 404
    assert await edge.ledger.last("chat", 10) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["last=0", "last=1001", "last=x", "last=1e3"])
def test_a_bad_query_names_its_parameter(query: str) -> None:
    @scenario
    async def check(edge: EdgeWorld) -> None:
        exchange = await edge.call("GET", f"/v1/models/chat/coldstarts?{query}")

        assert exchange.status == 400
        assert exchange.problem()["error"]["param"] == "last"

    check()


# -- logs ------------------------------------------------------------------------------------------


@scenario
async def test_logs_are_json_lines(edge: EdgeWorld) -> None:
    await edge.chat()

    exchange = await edge.call("GET", "/v1/models/chat/logs?last=1000")

    lines = [orjson.loads(line) for line in exchange.content.splitlines()]
    assert exchange.headers["content-type"] == "application/x-ndjson"
    assert lines[0]["text"] == "chat@1 is deployed"
    assert set(lines[0]) == {"at", "source", "text"}
    assert any("is ready" in line["text"] for line in lines)


@scenario
async def test_followed_logs_come_as_they_happen_until_the_reader_leaves(edge: EdgeWorld) -> None:
    exchange = edge.start("GET", "/v1/models/chat/logs?follow=true&last=1")
    await edge.settled()
    before = exchange.text

    await edge.chat()
    await edge.settled()

    assert before.count("\n") == 1
    assert "is ready" in exchange.text
    await exchange.leave()
    assert edge.world.logbook._followers == {}


# -- operations ------------------------------------------------------------------------------------


@scenario
async def test_health_and_readiness(edge: EdgeWorld) -> None:
    assert (await edge.call("GET", "/healthz")).json() == {"status": "ok"}
    ready = await edge.call("GET", "/readyz")
    assert (ready.status, ready.json()) == (200, {"status": "ready", "checks": ["store"]})

    edge.store_is_up = False
    failing = await edge.call("GET", "/readyz")

    assert (failing.status, failing.headers["retry-after"]) == (503, "1")
    assert failing.problem()["checks"] == {"store": "the store does not answer"}
    assert (await edge.call("GET", "/healthz")).status == 200


@scenario
async def test_a_readiness_check_that_hangs_fails(edge: EdgeWorld) -> None:
    async def hangs() -> None:
        await asyncio.sleep(1e6)

    edge.services.readiness["slow"] = hangs  # type: ignore[index]

    assert "no answer" in (await edge.call("GET", "/readyz")).problem()["checks"]["slow"]


@scenario
async def test_metrics_count_requests_and_read_the_rest_from_the_state(edge: EdgeWorld) -> None:
    held = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.chat(model="cat")
    await edge.settled()

    during = (await edge.call("GET", "/metrics")).text
    await held.done()
    after = (await edge.call("GET", "/metrics")).text

    assert 'firstlight_waiting{model="chat"} 1.0' in during
    assert 'firstlight_desired_replicas{model="chat"} 1.0' in during
    assert 'firstlight_requests_total{code="404",model="",revision=""} 1.0' in during
    assert 'firstlight_waiting{model="chat"} 0.0' in after
    assert 'firstlight_in_flight{model="chat"} 0.0' in after
    assert 'firstlight_requests_total{code="200",model="chat",revision="chat@1"} 1.0' in after
    assert 'firstlight_replicas{model="chat",state="ready"} 1.0' in after
    assert 'firstlight_cold_start_seconds_count{model="chat",stage="weights"} 1.0' in after
    assert 'firstlight_cold_start_seconds_count{model="chat",stage="total"} 1.0' in after
    assert 'firstlight_decisions_total{model="chat"}' in after
    assert "firstlight_nodes 1.0" in after
    assert 'firstlight_standby_ready{node="local"}' in after


@scenario
async def test_an_unknown_model_adds_no_label_of_its_own(edge: EdgeWorld) -> None:
    for number in range(20):
        await edge.chat(model=f"attack-{number}")

    assert "attack" not in (await edge.call("GET", "/metrics")).text


@scenario
async def test_every_kind_of_problem_has_its_page(edge: EdgeWorld) -> None:
    def descendants(kind: type[PlatformError]) -> set[str]:
        return {kind.slug}.union(*(descendants(heir) for heir in kind.__subclasses__()))

    index = (await edge.call("GET", "/problems")).text
    for slug in descendants(PlatformError):
        page = await edge.call("GET", f"/problems/{slug}")
        assert page.status == 200, slug
        assert f"/problems/{slug}" in index
    missing = await edge.call("GET", "/problems/<script>")
    assert (missing.status, missing.problem()["type"]) == (404, "/problems/not-found")


@scenario
async def test_addresses_and_methods_that_are_not_there_are_problems(edge: EdgeWorld) -> None:
    nothing = await edge.call("GET", "/v3/models")
    wrong = await edge.call("POST", "/v1/models")
    slash = await edge.call("GET", "/v1/models/")

    assert (nothing.status, nothing.problem()["type"]) == (404, "/problems/not-found")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET")
    assert wrong.problem()["type"] == "/problems/method-not-allowed"
    assert slash.status == 404


@scenario
async def test_the_description_covers_every_route_and_all_its_references(edge: EdgeWorld) -> None:
    schema = (await edge.call("GET", "/openapi.json")).json()

    assert {
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
        "/v1/models/{name}/invoke",
        *("/v1/models", "/v1/models/{name}", "/v1/models/{name}/coldstarts"),
        *("/v1/models/{name}/logs", "/v1/nodes", "/healthz", "/readyz", "/metrics"),
        *("/problems/{slug}", "/internal/nodes/{node_id}/reports"),
    } <= set(schema["paths"])
    for reference in references(schema):
        name = reference.removeprefix("#/components/schemas/")
        assert name in schema["components"]["schemas"], reference
    assert (await edge.call("GET", "/docs")).status == 200


def references(value: Any) -> set[str]:
    match value:
        case dict():
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        case list():
            return set().union(*map(references, value)) if value else set()
        case _:
            return set()


@scenario
async def test_a_defect_of_ours_is_a_problem_here_too(edge: EdgeWorld) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret detail")

    edge.world.fleet.sleepers = explode  # type: ignore[method-assign,assignment]
    exchange = edge.start("GET", "/v1/models/chat")
    with contextlib.suppress(RuntimeError):  # for the server's log
        await exchange.done()

    assert exchange.status == 500
    assert "secret" not in exchange.text
    assert exchange.problem()["type"] == "/problems/internal"


# -- nodes -----------------------------------------------------------------------------------------

NODE = {"authorization": "Bearer node"}


@scenario
async def test_a_node_registers_watches_and_reports(edge: EdgeWorld) -> None:
    registration = orjson.loads(a_registration("n2").model_dump_json())

    lease = await edge.call("POST", "/internal/nodes", registration, headers=NODE)
    desired = await edge.call("GET", "/internal/nodes/n2/desired", headers=NODE)
    state = DesiredState.model_validate_json(desired.content)
    report = {"node_id": "n2", "standby_ready": 0}
    reported = await edge.call("POST", "/internal/nodes/n2/reports", report, headers=NODE)
    nodes = await edge.call("GET", "/v1/nodes")

    assert NodeLease.model_validate_json(lease.content).node_id == "n2"
    assert state.replicas == ()
    assert reported.status == 200
    assert ClockReading.model_validate_json(reported.content).wall == edge.world.now()
    assert [node["node_id"] for node in nodes.json()["data"]] == ["local", "n2"]


@scenario
async def test_a_nodes_gpus_are_shown_as_it_told_of_them_last(edge: EdgeWorld) -> None:
    held = a_gpu(0).model_copy(update={"replica_id": "chat-1-a"})
    asleep = a_gpu(1).model_copy(update={"sleeper": "chat@1"})
    hurt = a_gpu(2, "h100").model_copy(update={"trouble": "XID 79"})
    told = [gpu.model_dump(mode="json") for gpu in (held, asleep, hurt, a_gpu(3))]
    report = {"node_id": "local", "standby_ready": 0}
    for gpus in ({"gpus": told}, {}):
        await edge.call("POST", "/internal/nodes/local/reports", report | gpus, headers=NODE)

    (node,) = (await edge.call("GET", "/v1/nodes")).json()["data"]
    metrics = (await edge.call("GET", "/metrics")).text

    assert node["gpus"] == told
    for kind, state in (("l4", "held"), ("l4", "asleep"), ("l4", "free"), ("h100", "in-trouble")):
        labels = f'{{kind="{kind}",node="local",state="{state}"}}'
        assert f"firstlight_gpus{labels} 1.0" in metrics


@scenario
async def test_a_node_that_will_be_taken_away_is_shown_with_why_and_when(edge: EdgeWorld) -> None:
    async def shown() -> object:
        (node,) = (await edge.call("GET", "/v1/nodes")).json()["data"]
        return node["leaving"]

    report = {"node_id": "local", "standby_ready": 0}
    at_risk = {"reason": "its spot instance is at risk", "at": None}
    interrupted = {"reason": "its spot instance is interrupted", "at": edge.world.now() + 120}
    before = await shown()
    after = []
    for notice in (at_risk, interrupted, None):
        await edge.call(
            "POST", "/internal/nodes/local/reports", report | {"leaving": notice}, headers=NODE
        )
        after.append(await shown())

    assert (before, after) == (None, [at_risk, interrupted, interrupted])


@scenario
async def test_who_sleeps_on_a_node_is_shown_and_the_model_says_that_it_will_wake(
    edge: EdgeWorld,
) -> None:
    sleeper = {"revision": "chat@1", "memory_bytes": 7, "since": 1.0, "until": 61.0}
    report = {"node_id": "local", "standby_ready": 0, "sleepers": [sleeper]}
    before = (await edge.call("GET", "/v1/models/chat")).json()["reason"]

    await edge.call("POST", "/internal/nodes/local/reports", report, headers=NODE)

    (node,) = (await edge.call("GET", "/v1/nodes")).json()["data"]
    reason = (await edge.call("GET", "/v1/models/chat")).json()["reason"]
    metrics = (await edge.call("GET", "/metrics")).text
    assert node["sleepers"] == [sleeper]
    assert 'firstlight_sleepers{node="local"} 1.0' in metrics
    assert (before, reason) == (
        "no request yet, the first one starts it",
        "no request yet, the first one wakes it",
    )


@scenario
async def test_a_watch_answers_when_there_is_news_or_its_time_is_over(edge: EdgeWorld) -> None:
    first = DesiredState.model_validate_json(
        (await edge.call("GET", "/internal/nodes/local/desired", headers=NODE)).content
    )
    begun_at = edge.world.now()
    same = await edge.call(
        "GET", f"/internal/nodes/local/desired?after={first.version}&wait_s=7", headers=NODE
    )
    waited_s = edge.world.now() - begun_at
    watch = edge.start(
        "GET", f"/internal/nodes/local/desired?after={first.version}&wait_s=50", headers=NODE
    )
    await edge.settled()

    held = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.settled()

    assert waited_s == pytest.approx(7)
    assert same.json()["version"] == first.version
    assert watch.is_whole, "within the call that decided"
    assert [one["desired"] for one in watch.json()["replicas"]] == ["run"]
    await held.done()


@scenario
async def test_an_unknown_node_is_told_to_register(edge: EdgeWorld) -> None:
    desired = await edge.call("GET", "/internal/nodes/nx/desired", headers=NODE)
    reported = await edge.call(
        "POST", "/internal/nodes/nx/reports", {"node_id": "nx", "standby_ready": 0}, headers=NODE
    )

    assert [desired.status, reported.status] == [404, 404]


BAD_REPORTS: dict[str, tuple[bytes, int, str]] = {
    "not json": (b"{", 400, "malformed-json"),
    "wrong types": (b'{"node_id":1}', 400, "invalid-request"),
    "another node": (b'{"node_id":"nx","standby_ready":0}', 400, "invalid-request"),
    "deep": (b"[" * 100_000, 400, "invalid-request"),
    "too large": (b" " * (17 << 20), 413, "body-too-large"),
}


@pytest.mark.parametrize("name", BAD_REPORTS)
def test_a_bad_report_is_a_problem(name: str) -> None:
    body, status, slug = BAD_REPORTS[name]

    @scenario
    async def check(edge: EdgeWorld) -> None:
        for content in (body, [body]):  # with a length, and without
            headers = NODE | {"content-type": "application/json"}
            exchange = edge.start("POST", "/internal/nodes/local/reports", content, headers=headers)
            await exchange.done()
            assert (exchange.status, exchange.problem()["type"]) == (status, f"/problems/{slug}")

    check()


@scenario
async def test_without_the_node_token_nothing_inside_is_shown(edge: EdgeWorld) -> None:
    for headers in ({}, {"authorization": "Bearer nodes"}):
        for method, path in [
            ("POST", "/internal/nodes"),
            ("GET", "/internal/nodes/local/desired"),
            ("POST", "/internal/nodes/local/reports"),
            ("GET", "/internal/whatever"),
        ]:
            exchange = await edge.call(method, path, headers=headers)
            assert (exchange.status, exchange.problem()["type"]) == (401, "/problems/unauthorized")
