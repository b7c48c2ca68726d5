"""What is written is what the documented contracts say, member for member."""

from typing import Any

import pytest
from pydantic import BaseModel

from infra.contracts.openai import ChatCompletion, ChatCompletionChunk, Completion
from infra.virtual_time import run_virtual
from tests.server.support import (
    Reply,
    chat_body,
    completion_body,
    engine_saying,
    make_server,
    post,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def ask(path: str, data: Any) -> Reply:
    async def asked() -> Reply:
        return await post(make_server(engine_saying("a", "é")), path, data)

    return run_virtual(asked())


@pytest.mark.parametrize(
    ("path", "data", "contract"),
    [
        (CHAT, chat_body(n=2), ChatCompletion),
        (CHAT, chat_body(logprobs=True, top_logprobs=2), ChatCompletion),
        (COMPLETIONS, completion_body(prompt=["a", "b"]), Completion),
        (COMPLETIONS, completion_body(logprobs=2), Completion),
    ],
)
def test_whole_answers(path: str, data: Any, contract: type[BaseModel]) -> None:
    answer = ask(path, data).json

    assert contract.model_validate(answer, strict=True).model_dump() == answer


@pytest.mark.parametrize(
    ("path", "data", "contract"),
    [
        (CHAT, chat_body(n=2), ChatCompletionChunk),
        (CHAT, chat_body(logprobs=True, top_logprobs=2), ChatCompletionChunk),
        (CHAT, chat_body(stream_options={"include_usage": True}), ChatCompletionChunk),
        (COMPLETIONS, completion_body(logprobs=2), Completion),
        (COMPLETIONS, completion_body(stream_options={"include_usage": True}), Completion),
    ],
)
def test_streamed_answers(path: str, data: Any, contract: type[BaseModel]) -> None:
    *events, done = ask(path, data | {"stream": True}).events

    assert done == "[DONE]"
    for event in events:
        value = contract.model_validate(event, strict=True)
        assert value.model_dump(exclude_unset=True) == event
