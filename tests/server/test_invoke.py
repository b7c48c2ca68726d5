from typing import Any

from infra.contracts.generation import InvokeEvent, InvokeResponse
from infra.contracts.openai import Usage
from infra.virtual_time import run_virtual
from tests.server.support import Reply, engine_saying, make_server, post
from worker.engine.fake import FakeEngine


def ask(engine: FakeEngine, **members: Any) -> Reply:
    return run_virtual(_ask(engine, members))


async def _ask(engine: FakeEngine, members: dict[str, Any]) -> Reply:
    return await post(make_server(engine), "/invoke", members)


def test_a_prompt_is_continued() -> None:
    reply = ask(engine_saying("one", " two"), prompt="Count:", n=2)

    answer = InvokeResponse.model_validate_json(reply.body)
    assert answer.id.startswith("inv-")
    assert answer.model == "chat"
    assert answer.output == "one two"
    assert [output.text for output in answer.outputs] == ["one two", "one two"]
    assert [output.finish_reason for output in answer.outputs] == ["stop", "stop"]
    assert answer.usage == Usage(prompt_tokens=6, completion_tokens=4, total_tokens=10)


def test_messages_are_answered() -> None:
    engine = engine_saying("a")

    ask(engine, messages=[{"role": "user", "content": "Hi"}])

    assert engine.submitted[0].prompt_token_ids == tuple(b"<user>Hi<assistant>")
    assert engine.submitted[0].sampling.max_tokens == engine.context_tokens - 19


def test_a_raw_prompt_has_256_tokens_unless_it_asks_for_more() -> None:
    engine = engine_saying("a")

    ask(engine, prompt="Hi")

    assert engine.submitted[0].sampling.max_tokens == 256


def test_a_stream_s_last_event_has_the_usage() -> None:
    reply = ask(engine_saying("a", "b"), prompt="Hi", stream=True)

    assert [InvokeEvent.model_validate(event) for event in reply.events] == [
        InvokeEvent(index=0, delta="a"),
        InvokeEvent(index=0, delta="b", finish_reason="stop"),
        InvokeEvent(
            usage=Usage(prompt_tokens=2, completion_tokens=2, total_tokens=4),
        ),
    ]


def test_prompt_and_messages_exclude_each_other() -> None:
    both = ask(engine_saying("a"), prompt="Hi", messages=[{"role": "user", "content": "Hi"}])
    neither = ask(engine_saying("a"))

    assert both.status == neither.status == 400
    assert both.json["detail"] == "give either prompt or messages"
