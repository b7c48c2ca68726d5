"""The official OpenAI client through the whole platform, with the real model, from zero."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.platform import RunningPlatform
from tests.support.processes import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

COLOURS: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Name three primary colours."},
]


@pytest.fixture(scope="module")
def client(platform: RunningPlatform) -> Iterator[openai.OpenAI]:
    url = f"{platform.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as one:
        yield one


def test_a_stream_from_zero(platform: RunningPlatform, client: openai.OpenAI) -> None:
    platform.until_idle("chat")

    chunks = list(
        client.chat.completions.create(
            model="chat",
            messages=COLOURS,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    first, last = chunks[0], chunks[-1]
    assert first.choices[0].delta.role == "assistant"
    assert last.choices == []
    assert last.usage is not None
    assert 1 <= last.usage.completion_tokens <= 24
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert {chunk.id for chunk in chunks} == {first.id}
    assert {chunk.model for chunk in chunks} == {"chat"}


def test_a_whole_answer_from_zero_accounts_for_its_stages(
    platform: RunningPlatform, client: openai.OpenAI
) -> None:
    platform.until_idle("chat")

    response = client.chat.completions.with_raw_response.create(
        model="chat", messages=COLOURS, max_tokens=4, temperature=0
    )

    assert response.headers["firstlight-cold-start"] == "true"
    assert "prefill;dur=" in response.headers["server-timing"]
    assert response.parse().choices[0].message.content


def test_streamed_and_whole_greedy_answers_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="chat", messages=COLOURS, max_tokens=24, temperature=0
    )
    stream = client.chat.completions.create(
        model="chat", messages=COLOURS, max_tokens=24, temperature=0, stream=True
    )

    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert streamed == whole.choices[0].message.content


def test_a_seed_makes_sampling_repeatable_choice_by_choice(client: openai.OpenAI) -> None:
    def texts(n: int, seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="chat", messages=COLOURS, n=n, seed=seed, temperature=1.2, max_tokens=16
        )
        return [choice.message.content for choice in answer.choices]

    three = texts(3, 11)

    assert texts(3, 11) == three
    assert texts(1, 11) == three[:1]
    assert texts(1, 12) == three[1:2]
    assert len(set(three)) > 1


def test_max_tokens_and_stop_end_an_answer(client: openai.OpenAI) -> None:
    prompt = "one two three four five six"
    cut = client.completions.create(model="chat", prompt=prompt, temperature=0, max_tokens=3)
    whole = client.completions.create(model="chat", prompt=prompt, temperature=0, max_tokens=12)
    text = whole.choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]

    stopped = client.completions.create(
        model="chat", prompt=prompt, temperature=0, max_tokens=12, stop=[stop]
    )

    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 3
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == text[: text.index(stop)]


def test_log_probabilities_belong_to_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="chat",
        messages=COLOURS,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )

    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert answer.usage is not None
    assert len(content) == answer.usage.completion_tokens
    spelled = b"".join(bytes(entry.bytes or []) for entry in content).decode()
    assert spelled.startswith(choice.message.content or "nothing")
    for entry in content:
        likeliest = [other.logprob for other in entry.top_logprobs]
        assert entry.logprob == likeliest[0]  # greedy
        assert likeliest == sorted(likeliest, reverse=True)
        assert all(logprob <= 0 for logprob in likeliest)


def test_completions_of_texts_and_token_ids(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="chat",
        prompt=["The capital of France is", "Two and two make"],
        n=2,
        seed=1,
        max_tokens=4,
        echo=True,
    )
    ids = client.completions.create(model="chat", prompt=[504, 3575], logprobs=2, max_tokens=4)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text.startswith("The capital") for choice in answer.choices[:2])
    assert all(choice.text.startswith("Two and two") for choice in answer.choices[2:])
    assert ids.choices[0].logprobs is not None
    assert ids.choices[0].logprobs.tokens is not None
    assert "".join(ids.choices[0].logprobs.tokens).startswith(ids.choices[0].text)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert "chat" in [model.id for model in client.models.list()]


def test_errors_are_the_client_s_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=COLOURS)
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="chat", prompt="word " * 20_000)
    with pytest.raises(openai.BadRequestError) as too_much:
        client.completions.create(model="chat", prompt="word", max_tokens=1_000_000)
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="chat",
            messages=COLOURS,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )

    assert unknown.value.code == "model_not_found"
    assert too_long.value.code == "context_length_exceeded"
    assert too_much.value.code == "context_length_exceeded"
    assert tools.value.param == "tools"


def test_closing_a_stream_frees_its_permit_at_once(
    platform: RunningPlatform, client: openai.OpenAI
) -> None:
    stream = client.completions.create(
        model="chat", prompt="Once upon a time", max_tokens=2000, stream=True
    )
    next(iter(stream))
    assert platform.status("chat")["in_flight"] == 1

    stream.close()

    until(
        lambda: platform.status("chat")["in_flight"] == 0,
        seconds=5,
        what="the closed stream is no longer in flight",
    )
    platform.until_idle("chat")


def test_many_clients_at_once_each_get_their_own_answer(platform: RunningPlatform) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str | None:
        answer = await client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": f"Repeat the number {number}."}],
            max_tokens=12,
            temperature=0,
        )
        return answer.choices[0].message.content

    async def all_at_once(numbers: list[int]) -> list[str | None]:
        url = f"{platform.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in numbers))

    numbers = list(range(20))
    together = asyncio.run(all_at_once(numbers))

    assert together[7:8] == asyncio.run(all_at_once([7]))
    assert together[13:14] == asyncio.run(all_at_once([13]))
    assert all(together)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_an_answer_from_zero_is_what_its_schema_says(
    platform: RunningPlatform, client: openai.OpenAI
) -> None:
    platform.until_idle("chat")
    answer = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "Ann is 31 years old. Describe her as JSON."}],
        max_tokens=100,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON},
        },
    )
    assert answer.choices[0].finish_reason == "stop"
    person = json.loads(answer.choices[0].message.content or "")
    jsonschema.validate(person, PERSON)


def test_a_schema_that_makes_no_sense_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="chat",
            messages=COLOURS,
            max_tokens=4,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
            },
        )
    assert caught.value.param == "response_format"


def test_penalties_are_taken(client: openai.OpenAI) -> None:
    def answer(**changes: Any) -> str:
        whole = client.completions.create(
            model="chat", prompt="A list: a, a, a, a, a,", max_tokens=12, temperature=0, **changes
        )
        return whole.choices[0].text

    plain = answer()
    assert answer(frequency_penalty=2, presence_penalty=2) != plain


def test_a_prompt_is_scored_without_an_answer(client: openai.OpenAI) -> None:
    scored = client.completions.create(
        model="chat", prompt="The capital of France is Paris", echo=True, logprobs=1, max_tokens=0
    )
    choice = scored.choices[0]
    assert choice.text == "The capital of France is Paris"
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    first, *others = choice.logprobs.token_logprobs
    assert first is None
    assert others and all(logprob < 0 for logprob in others)
    assert scored.usage is not None and scored.usage.completion_tokens == 0


def test_what_was_computed_of_a_prompt_is_told(client: openai.OpenAI) -> None:
    prompt = "The same beginning for both of them. " * 12
    for _ in range(2):
        whole = client.completions.create(model="chat", prompt=prompt, max_tokens=1)
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    cached = whole.usage.prompt_tokens_details.cached_tokens
    assert cached is not None and cached >= 48


def test_embeddings_from_zero_know_what_is_alike(
    platform: RunningPlatform, client: openai.OpenAI
) -> None:
    platform.until_idle("chat")
    texts = [
        "The cat sat on the mat.",
        "The cat sat on the rug.",
        "Compound interest is computed quarterly.",
    ]

    answer = client.embeddings.create(model="chat", input=texts)

    cat, same_cat, interest = (each.embedding for each in answer.data)
    assert len(cat) == 576
    assert dot(cat, cat) == pytest.approx(1, abs=1e-5)
    assert dot(cat, same_cat) > dot(cat, interest)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 15


def test_embeddings_are_the_same_numbers_however_they_are_asked_for(
    client: openai.OpenAI,
) -> None:
    text = "What a text is made of."
    many = client.embeddings.create(model="chat", input=["Another one.", text])
    floats = client.embeddings.create(model="chat", input=text, encoding_format="float")
    short = client.embeddings.create(model="chat", input=text, dimensions=64)

    whole = many.data[1].embedding
    assert floats.data[0].embedding == pytest.approx(whole, abs=1e-9)
    first = whole[:64]
    length = dot(first, first) ** 0.5
    expected = [number / length for number in first]
    assert short.data[0].embedding == pytest.approx(expected, abs=1e-6)


def test_an_embedding_of_token_ids_is_that_of_their_text(client: openai.OpenAI) -> None:
    # SmolLM2 adds no special tokens: 504 and 3575 are "The" and " capital".
    text = client.embeddings.create(model="chat", input="The capital")
    ids = client.embeddings.create(model="chat", input=[504, 3575])

    assert ids.data[0].embedding == text.data[0].embedding


def dot(left: list[float], right: list[float]) -> float:
    return sum(one * other for one, other in zip(left, right, strict=True))
