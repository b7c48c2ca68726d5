"""What the edge reads of a request is what the replica will read."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import ChatCompletionRequest, CompletionRequest, InvokeRequest
from infra.errors import Invalid
from infra.generation_requests import ModelBody, json_object, read_given, read_object

CONTRACTS: tuple[type[ModelBody], ...] = (
    *(ChatCompletionRequest, CompletionRequest, InvokeRequest, EmbeddingsRequest),
)
GOOD: dict[type[ModelBody], dict[str, Any]] = {
    ChatCompletionRequest: {"model": "chat", "messages": [{"role": "user", "content": "hi"}]},
    CompletionRequest: {"model": "chat", "prompt": ["a", "b"]},
    InvokeRequest: {"prompt": "hi"},
    EmbeddingsRequest: {"model": "chat", "input": [[1, 2], [3]]},
}
VALUES = (
    *(None, True, False, 0, 1, -1, 7, 0.5, 1 << 40, "", "x", "float", "x" * 300),
    *([], ["a"], [1, 2], [[1], [2]], {}, {"include_usage": True}, {"1": 2}, {"type": "text"}),
    *({"type": "json_schema", "json_schema": {"schema": {}}}, {"json": {}}, {"regex": "a"}),
    *([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], [{"role": "nobody"}]),
)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_given_fields_are_checked_as_the_whole_contract_is(
    contract: type[ModelBody], data: st.DataObject
) -> None:
    names = st.sampled_from([*contract.model_fields, "tools", "unknown"])
    sent = GOOD[contract] | data.draw(
        st.dictionaries(names, st.sampled_from(VALUES), max_size=6), label="sent"
    )
    try:
        request = read_object(contract, sent)
    except Invalid as error:
        with pytest.raises(Invalid) as refused:
            read_given(contract, orjson.dumps(sent))
        assert (refused.value.detail, refused.value.facts) == (error.detail, error.facts)
        return
    told = {name: getattr(request, name) for name in request.model_fields_set}
    assert read_given(contract, orjson.dumps(sent)) == told


def test_a_key_that_comes_twice_counts_as_its_last_for_the_edge_and_the_replica_alike():
    """However it is spelt: nobody hides from the edge what the replica then does."""
    body = rb'{"model": "m", "prompt": "a", "max_tokens": 1, "max_tokens": 2, "max_t\u006fkens": 3}'
    at_the_edge = read_given(CompletionRequest, body)
    at_the_replica = read_object(CompletionRequest, json_object(body))
    assert at_the_edge["max_tokens"] == at_the_replica.max_tokens == 3
