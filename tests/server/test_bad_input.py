import time
from typing import Any

import orjson
import pytest

from infra.virtual_time import run_virtual
from tests.server.support import (
    AUTHORIZATION,
    Client,
    Reply,
    chat_body,
    completion_body,
    engine_saying,
    make_server,
    post,
)
from worker.engine.fake import FakeEngine

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def ask(data: Any, path: str = CHAT, engine: FakeEngine | None = None, **options: Any) -> Reply:
    async def asked() -> Reply:
        return await post(make_server(engine or engine_saying("a"), **options), path, data)

    return run_virtual(asked())


def request(client: Client) -> Reply:
    async def asked() -> Reply:
        return await client.run(make_server(engine_saying("a")))

    return run_virtual(asked())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": NaN}',
        b'{"temperature": Infinity}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{}{}",
    ],
)
def test_what_is_not_json_is_a_typed_problem(body: bytes) -> None:
    reply = ask(body)

    assert reply.status == 400
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["type"] == "/problems/malformed-json"
    assert reply.json["instance"] == CHAT
    assert reply.json["error"]["code"] == "malformed_json"


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert ask(body).json["detail"] == "the body is not a JSON object"


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "king"}]}, "messages[1].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"model": 3}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1 << 63}, "max_tokens"),
        ({"max_tokens": 1 << 80}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": ["x", 3]}, "stop"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop": ""}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, None),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": nested(80)}}, None),
        ({"logit_bias": {"five": 1}}, None),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"ignore_eos": "no"}, "ignore_eos"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"priority": 1001}, "priority"),
    ],
)
def test_what_the_contract_refuses_names_its_field(
    members: dict[str, Any], param: str | None
) -> None:
    engine = engine_saying("a")

    reply = ask(chat_body(**members), engine=engine)

    assert reply.status == 400
    assert reply.json["type"] == "/problems/invalid-request"
    assert reply.json["error"]["type"] == "invalid_request_error"
    if param is not None:
        assert reply.json["error"]["param"] == param
    assert engine.submitted == []


def test_neutral_values_of_unsupported_parameters_are_fine() -> None:
    neutral = {"tools": [], "frequency_penalty": 0.0, "response_format": {"type": "text"}}

    assert ask(chat_body(**neutral, user="me", parallel_tool_calls=True)).status == 200


def test_a_body_over_the_limit_is_refused_whether_announced_or_not() -> None:
    announced = Client(CHAT, b"{}", headers=[AUTHORIZATION, (b"content-length", b"100000000")])
    silent = ask(b" " * 2000, most_body_bytes=1000)

    assert request(announced).status == silent.status == 413
    assert silent.json["type"] == "/problems/body-too-large"


@pytest.mark.parametrize(
    "data",
    [
        completion_body(prompt=["a"] * 2 + [3] * 500_000),
        completion_body(prompt=[None] * 500_000),
        completion_body(prompt=[["a"] * 1000] * 64),
        completion_body(prompt=[1] * 500_000),
        completion_body(prompt="x" * 4_000_000),
        completion_body(stop=["\x00"] * 100_000),
        chat_body(messages=[{}] * 10_000),
        chat_body(messages=[{"role": "user", "content": [{"type": "t"}] * 100}] * 1000),
    ],
    ids=range(8),
)
def test_hostile_bodies_cost_little(data: Any) -> None:
    body = orjson.dumps(data)
    started = time.process_time()

    reply = ask(body, path=COMPLETIONS if "prompt" in data else CHAT)

    assert reply.status == 400
    assert len(reply.body) < 10_000
    # No more than it takes to read them: what grows with their square takes minutes.
    assert time.process_time() - started < 5


def test_a_prompt_over_the_context_is_refused_with_openai_s_code() -> None:
    for path, data in (
        (CHAT, chat_body(messages=[{"role": "user", "content": "x" * 3000}])),
        (COMPLETIONS, completion_body(prompt="x" * 2048)),
        (COMPLETIONS, completion_body(prompt="x" * 100_000)),
        (COMPLETIONS, completion_body(prompt=[1] * 2048)),
    ):
        reply = ask(data, path=path)

        assert reply.status == 400
        assert reply.json["error"]["code"] == "context_length_exceeded"
        assert reply.json["limit"] == 2048


def test_asking_for_more_output_than_fits_is_refused_and_a_default_is_cut() -> None:
    too_much = ask(completion_body(prompt="x" * 2000, max_tokens=49), path=COMPLETIONS)
    fits = ask(completion_body(prompt="x" * 2000, max_tokens=48), path=COMPLETIONS)
    engine = engine_saying("a")
    ask(completion_body(prompt="x" * 2040), path=COMPLETIONS, engine=engine)

    assert too_much.json["error"]["code"] == "context_length_exceeded"
    assert too_much.json["error"]["param"] == "max_tokens"
    assert fits.status == 200
    assert engine.submitted[0].sampling.max_tokens == 8


def test_a_model_s_cap_on_output_refuses_what_is_written_and_cuts_what_is_not() -> None:
    engine = engine_saying("a")

    refused = ask(chat_body(max_tokens=101), max_output_tokens=100)
    ask(chat_body(), engine=engine, max_output_tokens=100)

    assert refused.status == 400
    assert refused.json["error"]["param"] == "max_tokens"
    assert engine.submitted[0].sampling.max_tokens == 100


def test_prompts_times_choices_are_bounded() -> None:
    reply = ask(completion_body(prompt=["a"] * 64, n=3), path=COMPLETIONS)

    assert reply.status == 400
    assert reply.json["limit"] == 128


def test_another_model_is_not_found_here() -> None:
    reply = ask(chat_body(model="other"))

    assert reply.status == 404
    assert reply.json["error"]["code"] == "model_not_found"
    assert ask(chat_body(model="chat@1")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer secre")],
        [(b"authorization", b"Bearer secret ")],
        [(b"authorization", b"Basic secret")],
        [(b"authorization", b"Bearer \xff")],
    ],
)
def test_without_the_token_nothing_is_served(headers: list[tuple[bytes, bytes]]) -> None:
    for method, path in (("POST", CHAT), ("GET", "/metrics"), ("GET", "/nowhere")):
        reply = request(Client(path, b"{}", method=method, headers=headers))

        assert reply.status == 401
        assert reply.json["error"]["type"] == "authentication_error"


def test_unknown_addresses_and_methods_are_problems() -> None:
    nowhere = request(Client("/v1/images", b"", method="POST"))
    wrong = request(Client(CHAT, b"", method="GET"))

    assert nowhere.status == 404
    assert wrong.status == 405
    assert wrong.headers["allow"] == "POST"


def test_health_needs_no_token_and_metrics_count() -> None:
    health = request(Client("/healthz", b"", method="GET", headers=[]))
    metrics = request(Client("/metrics", b"", method="GET"))

    assert health.json == {"status": "ready"}
    assert b"firstlight_replica_sequences_running 0\n" in metrics.body
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
