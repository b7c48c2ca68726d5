"""The official client against the real server, whose engine plays scripts."""

import asyncio
import threading
from collections.abc import Iterator

import openai
import pytest

from infra.errors import ReplicaFailed
from tests.server.support import TOKEN, ServerThread, make_server
from worker.engine.fake import FakeEngine, Script
from worker.engine.request import GenerationRequest

pytestmark = pytest.mark.real

HI: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def _scripted(request: GenerationRequest) -> Script:
    """Answers with its seed, or as the prompt commands."""
    prompt = bytes(request.prompt_token_ids).decode()
    if "fail late" in prompt:
        return Script(("so ", "far"), error=ReplicaFailed("the engine died"))
    if "fail" in prompt:
        return Script((), error=ReplicaFailed("the engine died"))
    if "long" in prompt:
        return Script(("word ",) * 1000, delay_s=0.005)
    return Script(("Hello", " wörld", " 😀", f" {request.sampling.seed}"), delay_s=0.001)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(_scripted)


@pytest.fixture(scope="module")
def server(engine: FakeEngine) -> Iterator[ServerThread]:
    running = ServerThread(lambda: make_server(engine))
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(server: ServerThread) -> Iterator[openai.OpenAI]:
    url = f"{server.url()}/v1"
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as one:
        yield one


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=HI, seed=7)

    [choice] = answer.choices
    assert choice.message.content == "Hello wörld 😀 7"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
    assert answer.object == "chat.completion"


def test_a_streamed_chat_with_choices_and_usage(client: openai.OpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    reasons: dict[int, str] = {}
    usages = []
    for chunk in client.chat.completions.create(
        model="chat",
        messages=HI,
        n=3,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason

    assert texts == {index: f"Hello wörld 😀 {index + 1}" for index in range(3)}
    assert reasons == {0: "stop", 1: "stop", 2: "stop"}
    assert usages[-1] is not None
    assert usages[-1].completion_tokens == 12
    assert set(usages[:-1]) == {None}


def test_chat_log_probabilities(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="chat", messages=HI, logprobs=True, top_logprobs=3, seed=1
    )
    stream = client.chat.completions.create(
        model="chat", messages=HI, logprobs=True, top_logprobs=3, seed=1, stream=True
    )

    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert [entry.token for entry in content] == ["Hello", " wörld", " 😀", " 1"]
    assert bytes(content[2].bytes or []) == " 😀".encode()
    assert [len(entry.top_logprobs) for entry in content] == [3, 3, 3, 3]
    streamed = [
        entry
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or []
    ]
    assert streamed == content


def test_the_client_s_own_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="chat", messages=HI, seed=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "Hello wörld 😀 2"


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="chat", prompt=["A", "B"], n=2, seed=1, echo=True, max_tokens=2
    )

    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "AHello wörld", "length"),
        (1, "AHello wörld", "length"),
        (2, "BHello wörld", "length"),
        (3, "BHello wörld", "length"),
    ]


def test_completion_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="chat", prompt=[72, 105], logprobs=2, seed=1)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Hello", " wörld", " 😀", " 1"]
    assert logprobs.text_offset == [0, 5, 11, 13]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [2, 2, 2, 2]


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="chat",
            prompt="Hi",
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == "Hello wörld 😀 5"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 6


def test_errors_are_the_client_s_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="chat", prompt="x" * 5000)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").completions.create(model="chat", prompt="x")
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="chat", prompt="fail", stream=True)

    assert too_long.value.code == "context_length_exceeded"
    assert unknown.value.code == "model_not_found"
    assert failed.value.status_code == 503
    assert failed.value.code == "replica_failed"


def test_an_error_in_the_middle_of_a_stream_is_an_exception(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="chat", prompt="fail late", stream=True)

    received: list[str] = []
    with pytest.raises(openai.APIError) as error:
        received.extend(chunk.choices[0].text for chunk in stream)

    assert "".join(received) == "so far"
    assert error.value.message == "the engine died"
    assert error.value.code == "replica_failed"


def test_closing_a_stream_aborts_it(client: openai.OpenAI, engine: FakeEngine) -> None:
    before = len(engine.aborted)
    stream = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "long"}], stream=True
    )
    next(iter(stream))

    stream.close()

    for _ in range(100):
        if len(engine.aborted) > before:
            break
        threading.Event().wait(0.01)
    assert len(engine.aborted) == before + 1
    assert engine.running == set()


def test_embeddings_in_both_formats(client: openai.OpenAI) -> None:
    texts = ["Hello", "wörld", "x"]

    plain = client.embeddings.create(model="chat", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="chat", input=texts)  # it asks for base64 itself

    assert [each.index for each in plain.data] == [0, 1, 2]
    assert [each.embedding for each in packed.data] == [
        pytest.approx(each.embedding, abs=1e-9) for each in plain.data
    ]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == 5 + 6 + 1
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="chat", input=texts, dimensions=9)


def test_many_at_once(server: ServerThread) -> None:
    async def story() -> list[str | None]:
        url = f"{server.url()}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model="chat", messages=HI, seed=seed)
                    for seed in range(50)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(story()) == [f"Hello wörld 😀 {seed}" for seed in range(50)]
