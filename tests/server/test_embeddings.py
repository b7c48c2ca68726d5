"""`POST /v1/embeddings` over an engine whose vectors count tokens by their id modulo 8."""

import asyncio
import base64
import struct
from typing import Any

import orjson
import pytest

from infra.contracts.openai import Embeddings
from infra.errors import ReplicaFailed
from infra.virtual_time import run_virtual
from tests.server.support import AUTHORIZATION, Client, Reply, make_server
from worker.engine.fake import FakeEngine

PATH = "/v1/embeddings"
A, B = ord("a") % 8, ord("b") % 8


def ask(engine: FakeEngine | None = None, **members: Any) -> Reply:
    return run_virtual(_ask(engine or FakeEngine(), members))


async def _ask(engine: FakeEngine, members: dict[str, Any], *headers: tuple[bytes, bytes]) -> Reply:
    return await client(members, *headers).run(make_server(engine))


def client(members: dict[str, Any], *headers: tuple[bytes, bytes]) -> Client:
    body = orjson.dumps({"model": "chat", "input": "a", **members})
    return Client(PATH, body, headers=[AUTHORIZATION, *headers])


def unit(*places: int) -> list[float]:
    """As many numbers, of which each place named adds one, scaled to length 1."""
    counts = [float(places.count(place)) for place in range(8)]
    length = sum(count * count for count in counts) ** 0.5
    return as_float32([count / length for count in counts])


def as_float32(numbers: list[float]) -> list[float]:
    return list(struct.unpack("8f", struct.pack("8f", *numbers)))


def vectors(reply: Reply) -> list[list[float]]:
    """Nine digits say exactly which float32 it was."""
    return [as_float32(each["embedding"]) for each in reply.json["data"]]


def test_one_text_gives_one_vector() -> None:
    reply = ask(input="aab")

    assert vectors(reply) == [unit(A, A, B)]
    [written] = reply.json["data"]
    assert reply.json == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": written["embedding"]}],
        "model": "chat",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert reply.headers["firstlight-prompt-tokens"] == "3"
    assert reply.headers["firstlight-completion-tokens"] == "0"
    assert reply.headers["server-timing"].startswith("prefill;dur=")


@pytest.mark.parametrize(
    "given", [["a", "ab"], [[97], [97, 98]]], ids=["texts", "lists of token ids"]
)
def test_several_inputs_give_vectors_in_their_order(given: Any) -> None:
    reply = ask(input=given)

    assert [each["index"] for each in reply.json["data"]] == [0, 1]
    assert vectors(reply) == [unit(A), unit(A, B)]
    assert reply.json["usage"]["prompt_tokens"] == 3


def test_token_ids_are_one_input() -> None:
    assert vectors(ask(input=[97, 98])) == [unit(A, B)]


def test_base64_is_the_same_numbers_as_little_endian_float32() -> None:
    [written] = ask(input="aab", encoding_format="base64").json["data"]

    data = base64.b64decode(written["embedding"], validate=True)
    assert list(struct.unpack("<8f", data)) == unit(A, A, B)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_what_is_written_is_what_is_documented(encoding: str) -> None:
    answer = ask(input=["a", "b"], encoding_format=encoding).json

    assert Embeddings.model_validate(answer, strict=True).model_dump() == answer


def test_dimensions_keep_the_first_numbers_and_a_length_of_one() -> None:
    [written] = ask(input=[96, 97, 98, 99], dimensions=2).json["data"]

    assert written["embedding"] == pytest.approx([0.5**0.5, 0.5**0.5], abs=1e-7)
    assert vectors(ask(dimensions=8)) == [unit(A)]


def test_numbers_that_are_all_zero_stay_zero() -> None:
    [written] = ask(input=[97], dimensions=1).json["data"]

    assert written["embedding"] == [0.0]


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"dimensions": 9}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", [97]]}, "input"),
        ({"input": [[97], []]}, "input"),
        ({"input": [97, 256]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": None}, "input"),
        ({"priority": 1001}, "priority"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(members: dict[str, Any], param: str) -> None:
    engine = FakeEngine()

    reply = ask(engine, **members)

    assert reply.status == 400
    assert reply.json["error"]["param"] == param
    assert engine.embedded == []


def test_an_answer_that_would_be_huge_is_refused() -> None:
    engine = FakeEngine(embedding_size=8192)

    floats = ask(engine, input=["a"] * 2048)
    few = ask(engine, input=["a"] * 2, encoding_format="base64")

    assert floats.status == 400
    assert "base64" in floats.json["hint"]
    assert few.status == 200


def test_an_input_may_fill_the_context_and_no_more() -> None:
    engine = FakeEngine(context_tokens=5)

    assert ask(engine, input="abcde").status == 200
    reply = ask(engine, input=["a", "abcdef"])
    assert reply.json["type"].endswith("context-length-exceeded")
    assert len(engine.embedded) == 1


def test_another_model_is_not_found_and_users_are_not_asked_about() -> None:
    assert ask(model="other").status == 404
    assert ask(model="chat@1", user="somebody", unheard_of=True).status == 200


def test_the_engine_hears_whose_it_is_how_urgent_and_until_when() -> None:
    engine = FakeEngine()
    headers = ((b"firstlight-tenant", b"acme"), (b"firstlight-timeout", b"7"))

    run_virtual(_ask(engine, {"input": ["a", "b"], "priority": -3}, *headers))

    assert [(each.tenant, each.priority) for each in engine.embedded] == [("acme", -3)] * 2
    assert all(each.deadline == pytest.approx(7) for each in engine.embedded)


def test_one_failure_ends_the_request_and_aborts_the_rest() -> None:
    engine = FakeEngine(embedding_delay_s=5)

    async def asked() -> Reply:
        asyncio.get_running_loop().call_later(1, engine.fail, ReplicaFailed("the engine died"))
        return await _ask(engine, {"input": ["a", "b"]})

    reply = run_virtual(asked())

    assert reply.status == 503
    assert engine.running == set()
    assert len(engine.aborted) == 2


def test_a_client_that_leaves_aborts_all_of_its_inputs() -> None:
    engine = FakeEngine(embedding_delay_s=5)

    async def leave() -> Reply:
        leaving = client({"input": ["a", "b"]})
        asyncio.get_running_loop().call_later(1, leaving.has_left.set)
        return await leaving.run(make_server(engine))

    reply = run_virtual(leave())

    assert reply.status == 0
    assert len(engine.aborted) == 2
    assert engine.running == set()
