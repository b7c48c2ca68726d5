"""The official client against the real server with the real engine and SmolLM2."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from infra.contracts.model_spec import EngineSettings
from tests.server.support import TOKEN, ServerThread, make_server
from worker.engine.async_engine import AsyncEngine
from worker.engine.engine import Engine
from worker.models.config import read_config
from worker.models.registry import build_model
from worker.server.app import ReplicaServer
from worker.tokenizer.tokenizer import Tokenizer
from worker.weights.loader import open_weights

pytestmark = pytest.mark.real

COLOURS: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Name three primary colours."}
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_dir)


@pytest.fixture(scope="module")
def client(smollm2_dir: Path, tokenizer: Tokenizer) -> Iterator[openai.OpenAI]:
    settings = EngineSettings()
    weights = open_weights(smollm2_dir, lambda fraction: None)
    engine = Engine(build_model(read_config(smollm2_dir), weights, settings), tokenizer, settings)
    engine.warm()
    running = AsyncEngine(engine, tokenizer)

    def build() -> ReplicaServer:
        running.start()
        return make_server(running, tokenizer)

    server = ServerThread(build)
    url = f"{server.url()}/v1"
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0, timeout=60) as one:
        yield one
    server.close()


def test_streamed_and_whole_greedy_answers_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="chat", messages=COLOURS, temperature=0, max_tokens=20
    )
    stream = client.chat.completions.create(
        model="chat", messages=COLOURS, temperature=0, max_tokens=20, stream=True
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    assert text


def test_a_seed_makes_every_choice_repeatable(client: openai.OpenAI) -> None:
    def texts() -> list[str]:
        answer = client.completions.create(
            model="chat",
            prompt=["The capital of France is", "Once upon a time"],
            n=2,
            seed=4,
            max_tokens=8,
        )
        return [choice.text for choice in answer.choices]

    first = texts()

    assert texts() == first
    assert len(set(first)) == 4


def test_token_ids_and_their_text_are_the_same_prompt(
    client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    text = "Zwölf Boxkämpfer jagen 😀"
    token_ids = tokenizer.encode(text, add_special_tokens=True)

    by_text = client.completions.create(
        model="chat", prompt=text, temperature=0, max_tokens=8, echo=True
    )
    by_ids = client.completions.create(
        model="chat", prompt=token_ids, temperature=0, max_tokens=8, echo=True
    )

    assert by_text.choices[0].text.startswith(text)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_text.usage is not None
    assert by_text.usage.prompt_tokens == len(token_ids)


def test_log_probabilities_spell_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="chat", prompt="One, two,", temperature=0, max_tokens=8, logprobs=3
    )

    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token


def test_a_context_s_worth_of_prompt_is_refused_before_the_engine(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="chat", prompt="word " * 100_000)

    assert refused.value.code == "context_length_exceeded"
