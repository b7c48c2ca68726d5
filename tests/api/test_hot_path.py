"""Generation requests through the whole control plane, at zero replicas and beside ready ones."""

import asyncio
import re
from typing import Any

import orjson
import pytest

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.contracts.revision import ReplicaState
from tests.activator.world import says, streams
from tests.api.world import CHAT, EdgeWorld, scenario


@scenario
async def test_a_request_at_zero_is_held_woken_for_answered_and_accounted_for(
    edge: EdgeWorld,
) -> None:
    edge.script = says("hello", seconds=0.05)

    exchange = await edge.chat()

    assert exchange.status == 200
    assert exchange.json() == {"text": "hello"}
    assert exchange.headers["firstlight-cold-start"] == "true"
    assert exchange.headers["firstlight-revision"] == "chat@1"
    timing = dict(re.findall(r"([a-z]+);dur=([0-9.]+)", exchange.headers["server-timing"]))
    assert {"runtime", "weights", "engine", "prefill", "unattributed", "total"} <= set(timing)
    total = float(timing.pop("total"))
    assert sum(map(float, timing.values())) == pytest.approx(total, abs=0.01)
    request_id = exchange.headers["firstlight-request-id"]
    listed = await edge.call("GET", f"/v1/models/chat/coldstarts?request_id={request_id}")
    [report] = listed.json()["data"]
    assert report["request_id"] == request_id
    assert report["ttft_s"] == pytest.approx(total / 1000, abs=1e-5)


@scenario
async def test_a_second_request_is_warm(edge: EdgeWorld) -> None:
    await edge.chat()

    exchange = await edge.chat()

    assert exchange.status == 200
    assert "firstlight-cold-start" not in exchange.headers
    assert exchange.headers["server-timing"] == "prefill;dur=10, decode;dur=20"
    listed = await edge.call("GET", "/v1/models/chat/coldstarts")
    assert len(listed.json()["data"]) == 1


@scenario
async def test_each_route_reaches_its_path_of_the_replica_with_its_own_bytes(
    edge: EdgeWorld,
) -> None:
    bodies = {
        "/v1/chat/completions": orjson.dumps(CHAT | {"newer_field": {"kept": True}}),
        "/v1/completions": b' {"prompt": "x", "model": "chat", "temperature": 1e0}',
        "/v1/embeddings": b'{"model":"chat", "input": ["x", "y"], "user": "somebody"}',
        "/v1/models/chat/invoke": b'{"prompt":"x"}',
    }

    for path, body in bodies.items():
        assert (await edge.call("POST", path, body)).status == 200

    requests = [one.request for one in edge.replicas.sent]
    assert [request.path for request in requests] == [*list(bodies)[:3], "/invoke"]
    assert [request.body for request in requests] == list(bodies.values())


@scenario
async def test_an_input_may_fill_the_context_where_a_prompt_may_not(edge: EdgeWorld) -> None:
    whole = [1] * 2048

    embedded = await edge.call("POST", "/v1/embeddings", {"model": "chat", "input": whole})
    continued = await edge.call("POST", "/v1/completions", {"model": "chat", "prompt": whole})

    assert (embedded.status, continued.status) == (200, 400)


@pytest.mark.parametrize(
    ("path", "asked", "taken"),
    [
        ("chat/completions", CHAT, 1),
        ("chat/completions", CHAT | {"n": 3}, 3),
        ("completions", {"model": "chat", "prompt": [1, 2, 3]}, 1),
        ("completions", {"model": "chat", "prompt": ["a", "b"]}, 2),
        ("completions", {"model": "chat", "prompt": [[1], [2]], "n": 2}, 4),
        ("models/chat/invoke", {"prompt": "a"}, 1),
        ("embeddings", {"model": "chat", "input": "a"}, 1),
        ("embeddings", {"model": "chat", "input": [1, 2, 3]}, 1),
        ("embeddings", {"model": "chat", "input": ["a", "b", "c"]}, 3),
        ("embeddings", {"model": "chat", "input": ["a"] * 2048}, 4),
    ],
)
def test_a_request_takes_as_many_permits_as_a_replica_makes_sequences_of_it(
    path: str, asked: dict[str, Any], taken: int
) -> None:
    @scenario
    async def main(edge: EdgeWorld) -> None:
        await edge.world.deploy("chat", scaling={"max": 1}, limits={"max_concurrency": 4})
        edge.script = says("hello", seconds=5)
        large = edge.start("POST", f"/v1/{path}", orjson.dumps(asked))
        await edge.world.until(lambda: edge.replicas.running)
        [replica] = edge.world.fleet.replicas()
        assert edge.lines.in_flight(replica) == taken

        others = [edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT)) for _ in range(4)]
        await edge.settled()
        waiting = edge.lines.demand(replica.revision.name).waiting
        assert waiting == taken, "each of the others takes one of those that are left"
        edge.lines.check_integrity()
        for exchange in (large, *others):
            await exchange.done()
        assert edge.lines.in_flight(replica) == 0

    main()


@scenario
async def test_a_large_request_starts_with_one_free_permit_and_then_keeps_others_waiting(
    edge: EdgeWorld,
) -> None:
    await edge.world.deploy("chat", scaling={"max": 1}, limits={"max_concurrency": 4})
    edge.script = says("hello", seconds=5)
    small = [edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT)) for _ in range(3)]
    await edge.world.until(lambda: edge.replicas.running)
    large = edge.start("POST", "/v1/embeddings", b'{"model":"chat","input":["a","b","c","d"]}')
    await edge.settled()
    [replica] = edge.world.fleet.replicas()
    assert edge.lines.in_flight(replica) == 3 + 4
    late = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))

    for exchange in (*small, large):
        await exchange.done()
        edge.lines.check_integrity()
    await late.done()
    assert {exchange.status for exchange in (*small, large, late)} == {200}


@scenario
async def test_five_hundred_requests_at_zero_start_one_replica(edge: EdgeWorld) -> None:
    edge.script = says("hello", seconds=0.01)
    exchanges = [edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT)) for _ in range(500)]

    for exchange in exchanges:
        await exchange.done()

    assert {exchange.status for exchange in exchanges} == {200}
    assert edge.world.started() == 1
    ids = [exchange.headers["firstlight-request-id"] for exchange in exchanges]
    assert [sent.request.request_id for sent in edge.replicas.sent] == ids, "in order of arrival"
    reports = await edge.ledger.last(edge.world.deployments.all()[0].model, 500)
    for report in reports:
        explained = sum(share.seconds for share in report.shares)
        assert explained + report.unattributed_s == pytest.approx(report.ttft_s, abs=1e-9)
        assert report.unattributed_s <= max(0.005, 0.01 * report.ttft_s)


@scenario
async def test_the_fleet_goes_back_to_zero_after_its_grace(edge: EdgeWorld) -> None:
    await edge.world.deploy("chat", scaling={"grace": 5})
    await edge.chat()
    assert edge.world.alive() == [ReplicaState.READY]

    await edge.world.until(lambda: not edge.world.alive())

    assert (await edge.chat()).headers["firstlight-cold-start"] == "true"
    assert edge.world.started() == 2


@scenario
async def test_a_client_that_leaves_while_held_is_forgotten(edge: EdgeWorld) -> None:
    exchange = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.settled()
    assert edge.lines.demand_of(edge.world.deployments.all()[0].model).waiting == 1

    await exchange.leave()

    assert exchange.status == 0
    await asyncio.sleep(5)
    assert edge.replicas.sent == []
    metrics = await edge.call("GET", "/metrics")
    assert (
        'firstlight_requests_total{code="499",model="chat",revision="chat@1"} 1.0' in metrics.text
    )


@scenario
async def test_a_client_that_leaves_in_mid_stream_stops_the_replica(edge: EdgeWorld) -> None:
    edge.script = streams(1000)
    exchange = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT | {"stream": True}))
    await asyncio.sleep(5)
    assert exchange.parts

    await exchange.leave()

    assert len(edge.replicas.aborted) == 1


@scenario
async def test_a_stream_that_breaks_off_ends_with_a_typed_event(edge: EdgeWorld) -> None:
    async def half(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200, [(b"content-type", b"text/event-stream")])
        await wire.write(b"data: 1\n\ndata: {")
        await asyncio.sleep(1)
        wire.break_off()

    edge.script = half

    exchange = await edge.chat(stream=True)

    events = exchange.text.split("\n\n")
    assert exchange.status == 200 and exchange.is_whole
    assert events[0] == "data: 1"
    name, data = events[1].split("\n")
    assert name == "event: error"
    problem = orjson.loads(data.removeprefix("data: "))
    assert problem["type"] == "/problems/replica-lost"
    assert problem["error"]["code"] == "replica_lost"
    metrics = await edge.call("GET", "/metrics")
    assert (
        'firstlight_requests_total{code="502",model="chat",revision="chat@1"} 1.0' in metrics.text
    )


@scenario
async def test_a_held_stream_shows_its_progress_and_then_its_tokens(edge: EdgeWorld) -> None:
    edge.script = streams(2)

    exchange = await edge.call(
        "POST",
        "/v1/chat/completions",
        CHAT | {"stream": True},
        headers={"firstlight-progress": "true"},
    )

    assert exchange.status == 200
    comments = [line for line in exchange.text.split("\n\n") if line.startswith(":")]
    assert all(re.match(r": (stage [a-z]+ \d+%|server-timing )", it) for it in comments)
    assert comments[-1].startswith(": server-timing ")
    assert exchange.text.endswith("data: 0\n\ndata: 1\n\n")


@scenario
async def test_an_error_of_the_replica_after_an_early_head_is_a_typed_event(
    edge: EdgeWorld,
) -> None:
    async def refuses(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(400)
        await wire.write(b"not even a problem")

    edge.script = refuses

    exchange = await edge.call(
        "POST",
        "/v1/chat/completions",
        CHAT | {"stream": True},
        headers={"firstlight-progress": "true"},
    )

    assert "event: error\ndata: {" in exchange.text
    assert exchange.is_whole


@scenario
async def test_a_deadline_of_a_held_request_is_a_gateway_timeout(edge: EdgeWorld) -> None:
    await edge.world.deploy("chat", timeouts={"cold_start": 0.05})

    exchange = await edge.chat()

    assert exchange.status == 504
    assert exchange.problem()["type"] == "/problems/cold-start-timeout"


@scenario
async def test_a_full_queue_says_when_to_come_back(edge: EdgeWorld) -> None:
    await edge.world.deploy("chat", limits={"max_queue": 1})
    held = edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT))
    await edge.settled()

    exchange = await edge.chat()

    assert exchange.status == 429
    assert int(exchange.headers["retry-after"]) >= 1
    assert exchange.problem()["error"]["type"] == "rate_limit_error"
    await held.done()
    assert held.status == 200


@scenario
async def test_a_defect_of_ours_is_a_problem_without_its_insides(edge: EdgeWorld) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("secret detail")

    edge.replicas.send = explode  # type: ignore[method-assign,assignment]

    exchange = await edge.chat()

    assert exchange.status == 500
    assert "secret" not in exchange.text
    assert exchange.problem()["type"] == "/problems/internal"


@scenario
async def test_who_is_sent_away_by_an_orderly_end_is_nothing_to_warn_of(edge: EdgeWorld) -> None:
    held = [edge.start("POST", "/v1/chat/completions", orjson.dumps(CHAT)) for _ in range(3)]
    await edge.settled()

    await edge.activator.drain(within_s=10)

    for exchange in held:
        await exchange.done()
    assert {exchange.status for exchange in held} == {503}
    assert {entry["log_level"] for entry in edge.world.logs} <= {"debug", "info"}
