"""Whatever comes in, the answer is an answer or a typed problem, and nothing keeps running."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.virtual_time import run_virtual
from tests.server.support import Reply, engine_saying, make_server, post

PATHS = ("/v1/chat/completions", "/v1/completions", "/invoke")

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    text,
)
junk = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(good, good, good, junk)


message = st.fixed_dictionaries(
    {
        "role": mostly(st.sampled_from(["system", "user", "assistant", "developer"])),
        "content": mostly(text),
    }
)
members = st.fixed_dictionaries(
    {},
    optional={
        "model": mostly(st.just("chat")),
        "messages": mostly(st.lists(message, min_size=1, max_size=3)),
        "prompt": mostly(st.one_of(text, st.lists(text), st.lists(st.integers(0, 300)))),
        "n": mostly(st.integers(1, 3)),
        "max_tokens": mostly(st.integers(1, 3000)),
        "temperature": mostly(st.floats(0, 2)),
        "seed": mostly(st.integers(-(1 << 63), (1 << 63) - 1)),
        "stop": mostly(st.lists(text, max_size=3)),
        "stream": mostly(st.booleans()),
        "stream_options": mostly(st.fixed_dictionaries({"include_usage": st.booleans()})),
        "logprobs": junk,
        "top_logprobs": mostly(st.integers(0, 5)),
        "echo": mostly(st.booleans()),
        "tools": junk,
        "response_format": junk,
    },
)


@settings(deadline=None, max_examples=300)
@given(path=st.sampled_from(PATHS), body=st.one_of(members, members, junk).map(orjson.dumps))
def test_any_json_gets_an_answer_or_a_typed_problem(path: str, body: bytes) -> None:
    assert_orderly(path, body)


@settings(deadline=None, max_examples=100)
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=200))
def test_any_bytes_get_a_typed_problem(path: str, body: bytes) -> None:
    assert_orderly(path, body)


def assert_orderly(path: str, body: bytes) -> None:
    engine = engine_saying("a", "b")
    reply = run_virtual(_post(path, body, engine))

    assert reply.is_complete
    assert reply.status in {200, 400, 404}
    if reply.status != 200:
        problem = reply.json
        assert problem["status"] == reply.status
        assert problem["error"]["message"]
    assert engine.running == set()


async def _post(path: str, body: bytes, engine: Any) -> Reply:
    return await post(make_server(engine), path, body)
