from typing import Any

import orjson

from infra.virtual_time import EPOCH, run_virtual
from tests.server.support import (
    AUTHORIZATION,
    Client,
    Reply,
    chat_body,
    engine_saying,
    make_server,
    post,
)
from worker.engine.fake import FakeEngine, Script
from worker.engine.request import GenerationRequest

PATH = "/v1/chat/completions"


def ask(engine: FakeEngine, **members: Any) -> Reply:
    return run_virtual(_ask(engine, members))


async def _ask(engine: FakeEngine, members: dict[str, Any]) -> Reply:
    return await post(make_server(engine), PATH, chat_body(**members))


def test_a_whole_answer_is_openai_s_chat_completion() -> None:
    reply = ask(engine_saying("Hel", "lo"))

    answer = reply.json
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "chat.completion",
        "created": int(EPOCH),
        "model": "chat",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len("<user>Hi<assistant>"),
            "completion_tokens": 2,
            "total_tokens": 21,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert reply.headers["content-type"] == "application/json"


def test_a_whole_answer_says_how_long_prefill_and_decode_took() -> None:
    reply = ask(engine_saying("a", "b", "c", first_delay_s=0.25, delay_s=0.01))

    assert (
        reply.headers["server-timing"] == "prefill;dur=250.00, tokenise;dur=0.00, decode;dur=20.00"
    )


def test_an_answer_carries_the_gateway_s_name_for_the_request() -> None:
    def named(name: bytes) -> str:
        headers = [AUTHORIZATION, (b"firstlight-request-id", name)]
        client = Client(PATH, orjson.dumps(chat_body()), headers=headers)

        async def asked() -> Reply:
            return await client.run(make_server(engine_saying("a")))

        return str(run_virtual(asked()).json["id"])

    assert named(b"req-17") == "chatcmpl-req-17"
    assert len(named(b'"\xff\n')) == len("chatcmpl-") + 32


def test_a_stream_begins_with_the_role_and_ends_with_done() -> None:
    reply = ask(engine_saying("Hel", "lo"), stream=True)

    *chunks, done = reply.events
    assert done == "[DONE]"
    assert [chunk["choices"][0] for chunk in chunks] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        },
        {"index": 0, "delta": {"content": "Hel"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {"content": "lo"}, "logprobs": None, "finish_reason": None},
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"},
    ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_s_head_waits_for_the_first_token_and_says_how_long() -> None:
    reply = ask(engine_saying("a", "b", first_delay_s=0.5, delay_s=0.1), stream=True)

    assert reply.headers["server-timing"] == "prefill;dur=500.00, tokenise;dur=0.00"
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [round(at, 3) for at, _ in reply.writes] == [0.5, 0.6]


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for() -> None:
    reply = ask(engine_saying("a"), stream=True, stream_options={"include_usage": True})

    *chunks, last, done = reply.events
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 19,
        "completion_tokens": 1,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_choices_run_at_once_and_share_a_write_a_step() -> None:
    engine = FakeEngine(_by_seed)

    reply = ask(engine, n=3, seed=7, stream=True)

    texts = _streamed_texts(reply)
    assert texts == {0: "seed 7", 1: "seed 8", 2: "seed 9"}
    assert [round(at, 1) for at, _ in reply.writes] == [1.0, 2.0]


def test_whole_choices_come_in_order() -> None:
    reply = ask(FakeEngine(_by_seed), n=3, seed=-1)

    assert [choice["index"] for choice in reply.json["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in reply.json["choices"]]
    assert texts == [f"seed {(1 << 64) - 1}", "seed 0", "seed 1"]
    assert reply.json["usage"]["prompt_tokens"] == 19  # once, however many choices
    assert reply.json["usage"]["completion_tokens"] == 6


def _by_seed(request: GenerationRequest) -> Script:
    return Script(("seed ", str(request.sampling.seed)), first_delay_s=1.0, delay_s=1.0)


def _streamed_texts(reply: Reply) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in reply.events[:-1]:
        for choice in event["choices"]:
            delta = choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + delta
    return texts


def test_log_probabilities_of_a_whole_answer() -> None:
    reply = ask(engine_saying("é", "!"), logprobs=True, top_logprobs=2)

    logprobs = reply.json["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert [entry["token"] for entry in logprobs["content"]] == ["é", "!"]
    assert logprobs["content"][0] == {
        "token": "é",
        "logprob": -0.5,
        "bytes": [0xC3, 0xA9],
        "top_logprobs": [
            {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]},
            {"token": "alternative1", "logprob": -2.0, "bytes": list(b"alternative1")},
        ],
    }


def test_log_probabilities_without_alternatives() -> None:
    reply = ask(engine_saying("a"), logprobs=True)

    assert reply.json["choices"][0]["logprobs"]["content"] == [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    ]


def test_streamed_log_probabilities_add_up_to_the_whole_ones() -> None:
    whole = ask(engine_saying("a", "b"), logprobs=True, top_logprobs=3)
    streamed = ask(engine_saying("a", "b"), logprobs=True, top_logprobs=3, stream=True)

    entries = [
        entry
        for event in streamed.events[:-1]
        for entry in (event["choices"][0]["logprobs"] or {}).get("content", [])
    ]
    assert entries == whole.json["choices"][0]["logprobs"]["content"]


def test_alternatives_without_log_probabilities_are_refused() -> None:
    reply = ask(engine_saying("a"), top_logprobs=2)

    assert reply.status == 400
    assert reply.json["error"]["param"] == "top_logprobs"


def test_text_that_would_break_events_comes_through_whole() -> None:
    nasty = '"quoted"\r\n\n\u2028data: [DONE]\x85\x00😀'

    reply = ask(engine_saying(nasty), stream=True)

    assert _streamed_texts(reply) == {0: nasty}


def test_sampling_reaches_the_engine_as_asked() -> None:
    engine = engine_saying("a")

    ask(engine, temperature=0, top_p=0.5, seed=3, stop=["x", "y"], max_completion_tokens=9)

    [request] = engine.submitted
    assert request.prompt_token_ids == tuple(b"<user>Hi<assistant>")
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0, 0.5, 3)
    assert (sampling.stop, sampling.max_tokens, sampling.logprobs) == (("x", "y"), 9, None)


def test_content_in_parts_and_the_developer_role_are_understood() -> None:
    engine = engine_saying("a")
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]

    ask(engine, messages=messages)

    expected = b"<system>Be brief<user>one two<assistant>"
    assert engine.submitted[0].prompt_token_ids == tuple(expected)


def test_without_max_tokens_a_chat_may_fill_the_context() -> None:
    engine = engine_saying("a")

    ask(engine)

    assert engine.submitted[0].sampling.max_tokens == engine.context_tokens - 19


def test_usage_tells_what_of_each_prompt_was_in_the_cache() -> None:
    cached = iter([16, 32])
    engine = FakeEngine(lambda request: Script(("a",), cached_tokens=next(cached)))

    reply = ask(engine, n=2)

    assert reply.json["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}
