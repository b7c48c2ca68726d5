"""Keys, tenants and usage over HTTP: who sees what, and what it costs whom."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.virtual_time import run_virtual
from tests.api.world import CHAT, EdgeWorld
from tests.fleet.makers import SOURCE
from tests.fleet.world import World

ROOT = {"authorization": "Bearer sesame-sesame-sesame"}
PATHS = ("", "/coldstarts", "/logs", "/explain", "/revisions", "/traffic")

Headers = dict[str, str]


def with_keys(
    main: Callable[[EdgeWorld, Headers, Headers], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    """A test in a world that asks for keys, with the headers of two tenants, acme and beta."""

    def test() -> None:
        async def run() -> None:
            async with World() as world:
                edge = EdgeWorld(world, root_key="sesame-sesame-sesame")
                await main(edge, await key(edge, "acme"), await key(edge, "beta"))
                await edge.settled()
                edge.check()
                await edge.replicas.close()

        run_virtual(run())

    test.__name__ = main.__name__
    return test


async def key(edge: EdgeWorld, tenant: str) -> Headers:
    made = await edge.call("POST", "/v1/keys", {"name": "app", "tenant": tenant}, headers=ROOT)
    assert made.status == 201
    return {"authorization": f"Bearer {made.json()['key']}"}


async def deploy(edge: EdgeWorld, headers: Headers, name: str, **sections: Any) -> int:
    spec = {"name": name, "source": SOURCE, **sections}
    return (await edge.call("PUT", f"/v1/models/{name}", spec, headers=headers)).status


async def chat(edge: EdgeWorld, headers: Headers, **changes: Any) -> Any:
    return await edge.call("POST", "/v1/chat/completions", CHAT | changes, headers=headers)


async def counting(request: ReplicaRequest, wire: Wire) -> None:
    """A replica that says what its answers cost, as ours do: 11 tokens in, 4 out."""
    prompt = (b"firstlight-prompt-tokens", b"11")
    if b"stream" in request.body:
        wire.head(200, [(b"content-type", b"text/event-stream"), prompt])
        await wire.write(b"data: a\n\n")
        await wire.write(b": firstlight-usage 11 4\n\ndata: [DONE]\n\n")
    else:
        completion = (b"firstlight-completion-tokens", b"4")
        wire.head(200, [(b"content-type", b"application/json"), prompt, completion])
        await wire.write(b"{}")


@with_keys
async def test_another_tenants_model_is_not_there(edge: EdgeWorld, acme: Headers, beta: Headers):
    assert await deploy(edge, acme, "chat") == 202

    for path in PATHS:
        found = await edge.call("GET", f"/v1/models/chat{path}", headers=beta)
        assert found.problem()["type"] == "/problems/model-not-found"
    assert (await edge.call("DELETE", "/v1/models/chat", headers=beta)).status == 404
    refused = await chat(edge, beta)
    invoked = await edge.call("POST", "/v1/models/chat/invoke", {"prompt": "hi"}, headers=beta)
    assert (refused.status, invoked.status) == (404, 404)
    assert "chat?" not in refused.text, "no guess may name what is not theirs"
    assert (await edge.call("GET", "/v1/models", headers=beta)).json()["data"] == []
    assert edge.is_asleep()


@with_keys
async def test_a_shared_model_can_be_called_and_not_seen_into(
    edge: EdgeWorld, acme: Headers, beta: Headers
):
    await deploy(edge, acme, "chat", shared=True)

    assert (await chat(edge, beta)).status == 200
    [entry] = (await edge.call("GET", "/v1/models", headers=beta)).json()["data"]
    assert (entry["id"], entry["owned_by"], entry["status"]) == ("chat", "acme", None)
    for path in PATHS:
        assert (await edge.call("GET", f"/v1/models/chat{path}", headers=beta)).status == 404
    assert (await edge.call("GET", "/v1/models/chat", headers=acme)).status == 200


@with_keys
async def test_a_name_belongs_to_who_took_it_first(edge: EdgeWorld, acme: Headers, beta: Headers):
    await deploy(edge, acme, "chat")

    assert await deploy(edge, beta, "chat") == 409
    assert await deploy(edge, ROOT, "chat", scaling={"max": 2}) == 202
    assert (await edge.call("GET", "/v1/models/chat", headers=acme)).status == 200
    await edge.call("DELETE", "/v1/models/chat", headers=acme)
    assert await deploy(edge, beta, "chat") == 202


@with_keys
async def test_only_an_admin_manages(edge: EdgeWorld, acme: Headers, beta: Headers):
    for method, path, body in (
        ("POST", "/v1/keys", {"name": "mine", "is_admin": True}),
        ("GET", "/v1/keys", b""),
        ("DELETE", "/v1/keys/x", b""),
        ("GET", "/v1/tenants", b""),
        ("PUT", "/v1/tenants/acme", {}),
        ("GET", "/v1/nodes", b""),
        ("GET", "/metrics", b""),
    ):
        refused = await edge.call(method, path, body, headers=acme)
        assert refused.problem()["type"] == "/problems/forbidden", path
    assert len((await edge.call("GET", "/v1/keys", headers=ROOT)).json()["data"]) == 2


@with_keys
async def test_usage_is_each_tenants_own(edge: EdgeWorld, acme: Headers, beta: Headers):
    await deploy(edge, acme, "chat", shared=True)
    edge.script = counting
    await chat(edge, acme)
    await chat(edge, beta)
    streamed = await chat(edge, beta, stream=True)
    assert streamed.text == "data: a\n\ndata: [DONE]\n\n"
    await chat(edge, beta, model="no-such-model")

    mine = (await edge.call("GET", "/v1/usage", headers=beta)).json()["data"]
    all_of_it = (await edge.call("GET", "/v1/usage", headers=ROOT)).json()["data"]

    assert [(it["tenant"], it["requests"], it["prompt_tokens"]) for it in mine] == [("beta", 2, 22)]
    assert mine[0]["completion_tokens"] == 8
    assert {it["tenant"] for it in all_of_it} == {"acme", "beta"}
    wrong = await edge.call("GET", "/v1/usage?since=2026-02-01&until=2026-01-01", headers=beta)
    assert wrong.problem()["type"] == "/problems/invalid-request"


@with_keys
async def test_a_stream_that_its_reader_leaves_costs_what_came(
    edge: EdgeWorld, acme: Headers, beta: Headers
):
    async def endless(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200, [(b"firstlight-prompt-tokens", b"11")])
        for _ in range(3):
            await wire.write(b"data: a\n\n")
        await asyncio.sleep(1e6)

    await deploy(edge, acme, "chat")
    edge.script = endless
    body = b'{"prompt":"x","stream":true}'
    reading = edge.start("POST", "/v1/models/chat/invoke", body, headers=acme)
    await asyncio.sleep(60)
    await reading.leave()

    [row] = (await edge.call("GET", "/v1/usage", headers=acme)).json()["data"]
    assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (1, 11, 3)


@with_keys
async def test_limits_hold_one_tenant_and_nobody_else(
    edge: EdgeWorld, acme: Headers, beta: Headers
):
    await deploy(edge, acme, "chat", shared=True)
    limits = {"requests_per_minute": 2}
    assert (await edge.call("PUT", "/v1/tenants/acme", limits, headers=ROOT)).status == 200

    statuses = [(await chat(edge, acme)).status for _ in range(3)]
    refused = await chat(edge, acme)

    assert statuses == [200, 200, 429]
    assert refused.problem()["type"] == "/problems/rate-limited"
    assert int(refused.headers["retry-after"]) in range(1, 31)
    assert (await chat(edge, beta)).status == 200
    await asyncio.sleep(31)
    assert (await chat(edge, acme)).status == 200


@with_keys
async def test_a_place_is_free_again_however_a_request_ended(
    edge: EdgeWorld, acme: Headers, beta: Headers
):
    await deploy(edge, acme, "chat")
    await edge.call("PUT", "/v1/tenants/acme", {"concurrency": 1}, headers=ROOT)
    held = edge.start("POST", "/v1/models/chat/invoke", b'{"prompt":"x"}', headers=acme)
    await edge.settled()

    assert (await chat(edge, acme)).status == 429
    await held.leave()
    assert (await chat(edge, acme)).status == 200
    assert (await chat(edge, acme, max_tokens=-1)).status == 400
    assert (await chat(edge, acme)).status == 200
    assert edge.quotas.running("acme") == 0  # type: ignore[arg-type]


@with_keys
async def test_held_requests_take_turns_by_the_weights_of_their_tenants(
    edge: EdgeWorld, acme: Headers, beta: Headers
):
    await deploy(edge, acme, "chat", shared=True, limits={"max_concurrency": 1})
    weighed = await edge.call("PUT", "/v1/tenants/acme", {"weight": 2}, headers=ROOT)
    assert weighed.json()["limits"]["weight"] == 2
    held = [
        edge.start("POST", "/v1/models/chat/invoke", b'{"prompt":"x"}', headers=headers)
        for headers in [acme] * 8 + [beta] * 4
    ]

    for exchange in held:
        await exchange.done()

    tenants = [sent.request.tenant for sent in edge.replicas.sent]
    assert [tenants[first : first + 6].count("acme") for first in (0, 3, 6)] == [4, 4, 4]


@with_keys
async def test_the_replica_learns_for_whom_and_how_long_it_computes(
    edge: EdgeWorld, acme: Headers, beta: Headers
):
    await deploy(edge, acme, "chat", timeouts={"execution": 7})
    await chat(edge, acme, user="beta")

    [sent] = edge.replicas.sent
    assert (sent.request.tenant, sent.request.timeout_s) == ("acme", 7)


@pytest.mark.parametrize("tenant", ["Acme", "a/b", "", "x" * 64, "ac me", "a\n"])
def test_a_tenants_name_is_a_plain_one(tenant: str):
    async def main() -> None:
        async with World() as world:
            edge = EdgeWorld(world, root_key="sesame-sesame-sesame")
            body = {"name": "app", "tenant": tenant}
            made = await edge.call("POST", "/v1/keys", body, headers=ROOT)
            assert made.problem()["type"] == "/problems/invalid-request"

    run_virtual(main())
