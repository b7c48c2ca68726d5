"""Hostile input at a zero-scaled model: a typed problem, at once, and nothing is woken."""

import time
from typing import Any

import orjson
import pytest

from control_plane.api.auth import KeyRing
from control_plane.api.generation import model_not_found
from infra.errors import Unauthorized
from infra.virtual_time import run_virtual
from tests.api.world import CHAT, EdgeWorld, scenario
from tests.fleet.world import World

COMPLETION = {"model": "chat", "prompt": "hi"}


def chat(**changes: Any) -> bytes:
    return orjson.dumps(CHAT | changes)


def completion(**changes: Any) -> bytes:
    return orjson.dumps(COMPLETION | changes)


def embedding(**changes: Any) -> bytes:
    return orjson.dumps({"model": "chat", "input": "hi"} | changes)


# path, body, status, slug, param
CASES: dict[str, tuple[str, bytes, int, str, str | None]] = {
    "empty": ("chat/completions", b"", 400, "malformed-json", None),
    "half": ("chat/completions", b'{"model":', 400, "malformed-json", None),
    "array": ("chat/completions", b"[]", 400, "invalid-request", None),
    "null": ("chat/completions", b"null", 400, "invalid-request", None),
    "nan": ("chat/completions", b'{"temperature":NaN}', 400, "malformed-json", None),
    "infinity": ("chat/completions", b'{"temperature":1e999}', 400, "malformed-json", None),
    "utf-8": ("chat/completions", b'{"model":"\xff"}', 400, "malformed-json", None),
    "surrogate": ("chat/completions", b'{"model":"\\ud800"}', 400, "malformed-json", None),
    "nul": ("chat/completions", b"\0", 400, "malformed-json", None),
    "bom": ("chat/completions", b"\xef\xbb\xbf{}", 400, "malformed-json", None),
    "deep objects": (
        *("chat/completions", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        *(400, "malformed-json", None),
    ),
    "deep arrays": (
        *("chat/completions", b'{"messages":' + b"[" * 100_000),
        *(400, "malformed-json", None),
    ),
    "no members": ("chat/completions", b"{}", 400, "invalid-request", "model"),
    "model of a wrong type": ("chat/completions", chat(model=1), 400, "invalid-request", "model"),
    "no messages": ("chat/completions", chat(messages=[]), 400, "invalid-request", "messages"),
    "an unknown role": (
        *("chat/completions", chat(messages=[{"role": "boss"}])),
        *(400, "invalid-request", "messages[0].role"),
    ),
    "an image": (
        *("chat/completions", chat(messages=[{"role": "user", "content": [{"type": "image"}]}])),
        *(400, "invalid-request", "messages[0].content"),
    ),
    "negative heat": ("chat/completions", chat(temperature=-1), 400, "invalid-request", None),
    "heat in words": ("chat/completions", chat(temperature="hot"), 400, "invalid-request", None),
    "n of 1000": ("chat/completions", chat(n=1000), 400, "invalid-request", "n"),
    "true for a number": ("chat/completions", chat(max_tokens=True), 400, "invalid-request", None),
    "max_tokens 0": ("chat/completions", chat(max_tokens=0), 400, "invalid-request", "max_tokens"),
    "max_tokens 2^63": (
        *("chat/completions", chat(max_tokens=2**63)),
        *(400, "invalid-request", "max_tokens"),
    ),
    "max_tokens 10^400": (
        *("chat/completions", b'{"max_tokens":1' + b"0" * 400 + b"}"),
        *(400, "malformed-json", None),
    ),
    "max_tokens over the context": (
        *("chat/completions", chat(max_tokens=2048)),
        *(400, "context-length-exceeded", "max_tokens"),
    ),
    "ten thousand stops": (
        *("chat/completions", chat(stop=["x"] * 10_000)),
        *(400, "invalid-request", "stop"),
    ),
    "ten thousand bad messages": (
        *("chat/completions", chat(messages=[{"role": 1, "content": 2}] * 10_000)),
        *(400, "invalid-request", "messages[0].role"),
    ),
    "a million nulls": (
        *("completions", completion(prompt=[None] * 800_000)),
        *(400, "invalid-request", "prompt"),
    ),
    "a million empty lists": (
        *("completions", b'{"model":"chat","prompt":[' + b"[]," * 1_300_000 + b"[]]}"),
        *(400, "invalid-request", "prompt"),
    ),
    "unknown members by the thousand": (
        *("models/chat/invoke", orjson.dumps({f"k{i}": 1 for i in range(300_000)})),
        *(400, "invalid-request", None),
    ),
    "an unknown member": (
        *("models/chat/invoke", orjson.dumps({"prompt": "hi", "promt": "x"})),
        *(400, "invalid-request", "promt"),
    ),
    "neither prompt nor messages": (
        *("models/chat/invoke", b"{}"),
        *(400, "invalid-request", "prompt"),
    ),
    "prompt and messages": (
        *("models/chat/invoke", orjson.dumps({"prompt": "x", "messages": CHAT["messages"]})),
        *(400, "invalid-request", "prompt"),
    ),
    "text over the context": (
        *("chat/completions", chat(messages=[{"role": "user", "content": "word " * 60_000}])),
        *(400, "context-length-exceeded", "prompt"),
    ),
    "text over the context, invoked": (
        *("models/chat/invoke", orjson.dumps({"prompt": "é" * 70_000})),
        *(400, "context-length-exceeded", "prompt"),
    ),
    "one of many prompts over the context": (
        *("completions", completion(prompt=["a", "b" * 140_000])),
        *(400, "context-length-exceeded", "prompt"),
    ),
    "tokens over the context": (
        *("completions", completion(prompt=[1] * 2048)),
        *(400, "context-length-exceeded", "prompt"),
    ),
    "tokens and output over the context": (
        *("completions", completion(prompt=[[1], [1] * 2000], max_tokens=49)),
        *(400, "context-length-exceeded", "prompt"),
    ),
    "a token that does not exist": (
        *("completions", completion(prompt=[0, 49152])),
        *(400, "invalid-request", "prompt"),
    ),
    "a negative token": (
        *("completions", completion(prompt=[[-1]])),
        *(400, "invalid-request", "prompt"),
    ),
    "an input over the context": (
        *("embeddings", embedding(input=["a", "b" * 140_000])),
        *(400, "context-length-exceeded", "input"),
    ),
    "tokens to embed over the context": (
        *("embeddings", embedding(input=[[1] * 2048, [1] * 2049])),
        *(400, "context-length-exceeded", "input"),
    ),
    "a token to embed that does not exist": (
        *("embeddings", embedding(input=[0, 49152])),
        *(400, "invalid-request", "input"),
    ),
    "no input": ("embeddings", embedding(input=[]), 400, "invalid-request", "input"),
    "a million inputs": (
        *("embeddings", embedding(input=["a"] * 1_000_000)),
        *(400, "invalid-request", "input"),
    ),
    "more dimensions than there are": (
        *("embeddings", embedding(dimensions=577)),
        *(400, "invalid-request", "dimensions"),
    ),
    "an unknown format of numbers": (
        *("embeddings", embedding(encoding_format="int8")),
        *(400, "invalid-request", "encoding_format"),
    ),
    "an unknown model": (
        *("chat/completions", chat(model="cat")),
        *(404, "model-not-found", "model"),
    ),
    "an unknown model, invoked": (
        *("models/cat/invoke", b'{"prompt":"x"}'),
        *(404, "model-not-found", "model"),
    ),
    "a model with an odd name": (
        *("models/ch%00at\r\n/invoke", b'{"prompt":"x"}'),
        *(404, "model-not-found", "model"),
    ),
    "no model's name": ("models//invoke", b'{"prompt":"x"}', 404, "model-not-found", "model"),
    "a long model's name": (
        *("chat/completions", chat(model="x" * 257)),
        *(400, "invalid-request", "model"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_at_once_and_wakes_nothing(name: str) -> None:
    path, body, status, slug, param = CASES[name]

    @scenario
    async def check(edge: EdgeWorld) -> None:
        begun = time.thread_time()
        exchange = await edge.call("POST", f"/v1/{path}", body)
        took_s = time.thread_time() - begun

        problem = exchange.problem()
        assert (exchange.status, problem["type"]) == (status, f"/problems/{slug}"), problem
        if param is not None:
            assert problem["error"]["param"] == param
        assert edge.is_asleep()
        assert exchange.headers["firstlight-request-id"].startswith("req_")
        assert len(exchange.content) < 20_000
        assert took_s < 0.5, "of the processor; a fraction of it on any but the largest bodies"

    check()


@scenario
async def test_every_problem_is_listed_with_its_pointer(edge: EdgeWorld) -> None:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "x"}, {"role": "boss", "content": 7}],
        "temperature": -1,
        "stop": ["fine", ""],
        "stream_options": {"include_usage": "yes"},
    }

    problem = (await edge.call("POST", "/v1/chat/completions", body)).problem()

    assert [error["pointer"] for error in problem["errors"]] == [
        "#/temperature",
        "#/stop",
        "#/stop/1",
        "#/stream_options/include_usage",
        "#/messages/1/role",
        "#/messages/1/content",
    ]
    assert problem["errors"][0]["message"] == "input should be greater than or equal to 0"
    assert problem["error"]["param"] == "temperature"


@scenario
async def test_a_model_nearly_named_is_guessed(edge: EdgeWorld) -> None:
    await edge.world.deploy("smollm2-chat")

    problem = (await edge.chat(model="smolm2-chat")).problem()

    assert problem["hint"] == "did you mean smollm2-chat?"


def test_guessing_stays_cheap_among_many_models() -> None:
    begun = time.thread_time()

    error = model_not_found("q" * 256, [f"model-{n}" for n in range(100_000)])

    assert time.thread_time() - begun < 0.2
    assert len(error.detail) < 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_only_post_is_possible_on_hot_paths(method: str) -> None:
    @scenario
    async def check(edge: EdgeWorld) -> None:
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/models/chat/invoke"):
            exchange = await edge.call(method, path)
            assert exchange.status == 405
            assert exchange.headers["allow"] == "POST"
        assert edge.is_asleep()

    check()


# -- size ------------------------------------------------------------------------------------------


@scenario
async def test_a_body_that_says_it_is_too_large_is_refused_unread(edge: EdgeWorld) -> None:
    exchange = edge.start("POST", "/v1/chat/completions", b"", length=100_000_000)
    await edge.settled()

    assert (exchange.status, exchange.was_read) == (413, 0)
    assert exchange.problem()["type"] == "/problems/body-too-large"
    assert exchange.headers["connection"] == "close"
    await exchange.done()
    assert edge.is_asleep()


@scenario
async def test_a_body_without_a_length_is_cut_at_the_limit(edge: EdgeWorld) -> None:
    parts = (b'{"x":"' if n == 0 else b"x" * 65536 for n in range(1600))
    exchange = edge.start("POST", "/v1/chat/completions", parts)

    await exchange.done()

    assert exchange.status == 413
    assert exchange.problem()["limit"] == 4 << 20


@scenario
async def test_each_model_has_its_own_limit(edge: EdgeWorld) -> None:
    await edge.world.deploy("small", limits={"max_body_bytes": 1024})
    await edge.world.deploy("large", limits={"max_body_bytes": 8 << 20})
    body = orjson.dumps({"prompt": "x", "stop": "y" * 1100})

    refused = await edge.call("POST", "/v1/models/small/invoke", body)
    by_body = await edge.call("POST", "/v1/completions", {"model": "small", "prompt": "x" * 1100})
    padded = orjson.dumps(CHAT) + b" " * (6 << 20)
    too_large_for_chat = await edge.call("POST", "/v1/chat/completions", padded)
    too_large_for_all = await edge.call("POST", "/v1/chat/completions", padded + b" " * (3 << 20))

    assert [refused.status, by_body.status] == [413, 413]
    assert [refused.problem()["limit"], by_body.problem()["limit"]] == [1024, 1024]
    assert too_large_for_chat.problem()["limit"] == 4 << 20
    assert too_large_for_all.problem()["limit"] == 8 << 20
    assert edge.is_asleep()


@scenario
async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(
    edge: EdgeWorld,
) -> None:
    exchange = edge.start("POST", "/v1/chat/completions", [b'{"model":'], breaks_off=True)
    await edge.settled()

    await exchange.leave()

    assert exchange.status == 0
    assert edge.is_asleep()


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_is_asked_where_one_is_set() -> None:
    async def main() -> None:
        async with World() as world:
            edge = EdgeWorld(world, root_key="sesame-sesame-sesame")
            await world.deploy("chat")
            right = {"authorization": "Bearer sesame-sesame-sesame"}
            wrong = {"authorization": "Bearer sesame-sesame-sesamE"}
            for method, path in [
                ("POST", "/v1/chat/completions"),
                ("GET", "/v1/models"),
                ("PUT", "/v1/models/x"),
                ("GET", "/metrics"),
                ("GET", "/v1/nodes"),
            ]:
                for headers in ({}, wrong, {"authorization": "Basic x"}):
                    exchange = await edge.call(method, path, CHAT, headers=headers)
                    assert exchange.status == 401
                    assert exchange.problem()["type"] == "/problems/unauthorized"
                    assert exchange.headers["www-authenticate"] == "Bearer"
            for path in ("/healthz", "/readyz", "/problems/queue-full", "/openapi.json"):
                assert (await edge.call("GET", path)).status == 200
            assert edge.is_asleep()
            assert (await edge.call("GET", "/v1/models", headers=right)).status == 200
            answered = await edge.call("POST", "/v1/chat/completions", CHAT, headers=right)
            assert answered.status == 200
            inside = await edge.call("GET", "/internal/nodes/local/desired", headers=right)
            assert inside.status == 401, "a client's key opens nothing inside"
            await edge.replicas.close()

    run_virtual(main())


def test_any_of_several_keys_opens() -> None:
    ring = KeyRing(["first-key", "second-key"])

    ring.check(b"Bearer first-key")
    ring.check(b"bearer second-key ")
    for header in (None, b"", b"Bearer", b"Bearer first-key2", b"first-key", b"Bearer \xff"):
        with pytest.raises(Unauthorized):
            ring.check(header)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}]}, "tools"),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, None),
        ("/v1/chat/completions", {**CHAT, "top_logprobs": 3}, "top_logprobs"),
        (
            "/v1/completions",
            {"model": "chat", "prompt": "a", "logit_bias": {"1": 200}},
            "logit_bias.1",
        ),
        ("/v1/completions", {"model": "chat", "prompt": ["a"] * 64, "n": 3}, "n"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 0}, "max_tokens"),
        ("/v1/models/chat/invoke", {"prompt": "a", "messages": CHAT["messages"]}, "prompt"),
    ],
)
def test_what_no_replica_does_is_refused_before_one_is_woken(
    path: str, body: dict[str, object], param: str | None
) -> None:
    @scenario
    async def test(edge: EdgeWorld) -> None:
        answer = await edge.call("POST", path, body)
        assert answer.status == 400
        problem = answer.problem()
        assert problem["type"] == "/problems/invalid-request"
        assert param is None or problem["error"]["param"] == param
        assert edge.is_asleep()

    test()
