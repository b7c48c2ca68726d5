"""Whatever comes in, the answer is an answer or a typed problem, and nothing keeps running."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.virtual_time import run_virtual
from tests.server.support import Reply, engine_saying, make_server, post

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/invoke")

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


message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "developer"]),
        "content": st.one_of(
            text, st.lists(st.builds(lambda part: {"type": "text", "text": part}, text))
        ),
    }
)
common = {
    "n": st.integers(1, 3),
    "max_tokens": st.integers(1, 3000),
    "temperature": st.floats(0, 2),
    "seed": st.integers(-(1 << 63), (1 << 63) - 1),
    "stop": st.lists(text.filter(bool), max_size=3),
    "stream": st.booleans(),
}
prompt = st.one_of(text.filter(bool), st.lists(text, min_size=1), st.lists(st.integers(0, 256)))
messages = st.lists(message, min_size=1, max_size=3)
usage = st.fixed_dictionaries({"include_usage": st.booleans()})
good = {
    "/v1/chat/completions": st.fixed_dictionaries(
        {"model": st.just("chat"), "messages": messages},
        optional={**common, "stream_options": usage, "logprobs": st.just(True)},
    ),
    "/v1/completions": st.fixed_dictionaries(
        {"model": st.just("chat"), "prompt": prompt},
        optional={**common, "stream_options": usage, "logprobs": st.integers(0, 5)},
    ),
    "/v1/embeddings": st.fixed_dictionaries(
        {"model": st.just("chat"), "input": prompt},
        optional={
            "dimensions": st.integers(1, 9),
            "encoding_format": st.sampled_from(["float", "base64"]),
        },
    ),
    "/invoke": st.fixed_dictionaries({"messages": messages}, optional=common),
}


@st.composite
def slightly_wrong(draw: st.DrawFn) -> tuple[str, bytes]:
    """A request that would be fine, had not at most one member been replaced by junk."""
    path = draw(st.sampled_from(PATHS))
    body = dict(draw(good[path]))
    if draw(st.booleans()):
        body[draw(st.sampled_from([*body, "echo", "tools", "top_logprobs"]))] = draw(junk)
    return path, orjson.dumps(body)


@settings(deadline=None, max_examples=300)
@given(request=slightly_wrong())
def test_any_request_gets_an_answer_or_a_typed_problem(request: tuple[str, bytes]) -> None:
    assert_orderly(*request)


@settings(deadline=None, max_examples=100)
@given(
    path=st.sampled_from(PATHS),
    body=st.one_of(st.binary(max_size=200), junk.map(orjson.dumps)),
)
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
