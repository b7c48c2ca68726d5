from typing import Any

from infra.virtual_time import EPOCH, run_virtual
from tests.server.support import Reply, completion_body, engine_saying, make_server, post
from worker.engine.fake import FakeEngine, Script
from worker.engine.request import GenerationRequest

PATH = "/v1/completions"


def ask(engine: FakeEngine, **members: Any) -> Reply:
    return run_virtual(_ask(engine, members))


async def _ask(engine: FakeEngine, members: dict[str, Any]) -> Reply:
    return await post(make_server(engine), PATH, completion_body(**members))


def _echoing_prompt(request: GenerationRequest) -> Script:
    """Says which prompt and which seed it was asked with."""
    return Script((bytes(request.prompt_token_ids).decode(), "/", str(request.sampling.seed)))


def test_a_whole_answer_is_openai_s_text_completion() -> None:
    reply = ask(engine_saying(" the", "re"))

    answer = reply.json
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "text_completion",
        "created": int(EPOCH),
        "model": "chat",
        "choices": [{"index": 0, "text": " there", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_a_stream_ends_with_an_empty_text_and_its_reason() -> None:
    reply = ask(engine_saying("a", "b", "c"), max_tokens=2, stream=True)

    *chunks, done = reply.events
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "b", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}],
    ]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)


def test_every_prompt_gets_n_choices_in_order() -> None:
    reply = ask(FakeEngine(_echoing_prompt), prompt=["A", "B"], n=2, seed=5)

    assert [(choice["index"], choice["text"]) for choice in reply.json["choices"]] == [
        (0, "A/5"),
        (1, "A/6"),
        (2, "B/5"),  # as it would be if B had been asked for alone
        (3, "B/6"),
    ]
    assert reply.json["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 12,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_prompts_may_be_token_ids() -> None:
    engine = FakeEngine(_echoing_prompt)

    one = ask(engine, prompt=[72, 105])
    many = ask(engine, prompt=[[72], [105]])

    assert one.json["choices"][0]["text"] == "Hi/None"
    assert [choice["text"] for choice in many.json["choices"]] == ["H/None", "i/None"]


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    for token_id in (256, -1, 1 << 62):
        engine = engine_saying("a")

        reply = ask(engine, prompt=[72, token_id])

        assert reply.status == 400
        assert reply.json["error"]["param"] == "prompt[1]"
        assert engine.submitted == []


def test_an_empty_prompt_is_refused() -> None:
    reply = ask(engine_saying("a"), prompt="")

    assert reply.status == 400
    assert reply.json["detail"] == "the prompt has no tokens"


def test_echo_puts_each_prompt_before_its_choices() -> None:
    engine = engine_saying(" the", "re")

    whole = ask(engine, prompt=["Hi", "Yo"], n=2, echo=True)
    tokens = ask(engine, prompt=[0xC3, 0xA9], echo=True)
    streamed = ask(engine, echo=True, stream=True)

    texts = [choice["text"] for choice in whole.json["choices"]]
    assert texts == ["Hi there", "Hi there", "Yo there", "Yo there"]
    assert whole.json["usage"]["completion_tokens"] == 8  # the echo was not generated
    assert tokens.json["choices"][0]["text"] == "é there"
    assert [event["choices"][0]["text"] for event in streamed.events[:-1]] == ["Hi the", "re", ""]


def test_echo_has_the_log_probabilities_of_the_prompt_and_none_for_its_first_token() -> None:
    reply = ask(engine_saying(" the"), prompt=[72, 105], echo=True, logprobs=1)

    choice = reply.json["choices"][0]
    assert choice["text"] == "Hi the"
    assert choice["logprobs"] == {
        "tokens": ["H", "i", " the"],
        "token_logprobs": [None, -0.25, -0.5],
        "top_logprobs": [None, {"i": -0.25}, {" the": -0.5}],
        "text_offset": [0, 1, 2],
    }


def test_a_prompt_can_be_scored_without_an_answer() -> None:
    engine = engine_saying("never shown", "at all")
    reply = ask(engine, prompt=[72, 105], echo=True, logprobs=0, max_tokens=0)
    streamed = ask(engine, prompt=[72, 105], echo=True, max_tokens=0, stream=True)

    choice = reply.json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25]
    assert reply.json["usage"]["completion_tokens"] == 0
    assert [event["choices"][0]["text"] for event in streamed.events[:-1]] == ["Hi", ""]


def test_no_tokens_at_all_is_refused() -> None:
    reply = ask(engine_saying("a"), max_tokens=0)

    assert reply.status == 400
    assert reply.json["error"]["param"] == "max_tokens"


def test_log_probabilities_are_four_parallel_lists() -> None:
    reply = ask(engine_saying("é", "xy", "!"), logprobs=2)

    assert reply.json["choices"][0]["logprobs"] == {
        "tokens": ["é", "xy", "!"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [
            {"é": -0.5, "alternative1": -2.0},
            {"xy": -0.5, "alternative1": -2.0},
            {"!": -0.5, "alternative1": -2.0},
        ],
        "text_offset": [0, 1, 3],
    }


def test_no_alternatives_still_names_the_chosen_token() -> None:
    reply = ask(engine_saying("a"), logprobs=0)

    assert reply.json["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


def test_streamed_log_probabilities_add_up_to_the_whole_ones() -> None:
    whole = ask(engine_saying("é", "xy", "!"), logprobs=2)
    streamed = ask(engine_saying("é", "xy", "!"), logprobs=2, stream=True)

    parts = [event["choices"][0]["logprobs"] for event in streamed.events[:-1]]
    added = {
        name: [entry for part in parts if part is not None for entry in part[name]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    assert added == whole.json["choices"][0]["logprobs"]


def test_without_max_tokens_a_completion_has_sixteen() -> None:
    engine = engine_saying("a")

    ask(engine)

    assert engine.submitted[0].sampling.max_tokens == 16
