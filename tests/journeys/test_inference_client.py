"""Triton's own client of the open inference protocol through the whole platform, from zero."""

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support.platform import RunningPlatform

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

PROMPTS = ["The capital of France is", "The capital of Italy is"]
AS_SENT = pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])


@pytest.fixture(scope="module")
def client(platform: RunningPlatform) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(urlsplit(platform.url).netloc, network_timeout=60) as one:
        yield one


def texts(result: triton.InferResult, name: str) -> list[str]:
    """An output's elements; the client leaves those as bytes that came behind the JSON."""
    elements = result.as_numpy(name).tolist()
    return [each.decode() if isinstance(each, bytes) else each for each in elements]


@AS_SENT
def test_prompts_of_a_model_at_zero_are_continued(
    platform: RunningPlatform, client: triton.InferenceServerClient, is_binary: bool
) -> None:
    platform.until_idle("chat")
    assert client.is_model_ready("chat")
    text = triton.InferInput("text_input", [2], "BYTES")
    text.set_data_from_numpy(np.array(PROMPTS, dtype=object), binary_data=is_binary)
    length = triton.InferInput("max_tokens", [1], "INT32")
    length.set_data_from_numpy(np.array([3], dtype=np.int32), binary_data=is_binary)
    wanted = [
        triton.InferRequestedOutput(name, binary_data=is_binary)
        for name in ("text_output", "finish_reason")
    ]

    result = client.infer(
        "chat", [text, length], outputs=wanted, request_id="7", parameters={"temperature": 0.0}
    )

    answers = texts(result, "text_output")
    asked = {"model": "chat", "prompt": PROMPTS, "max_tokens": 3, "temperature": 0}
    same = platform.client.post("/v1/completions", json=asked).json()["choices"]
    assert answers == [choice["text"] for choice in same]
    assert texts(result, "finish_reason") == ["length", "length"]
    assert result.get_response()["id"] == "7"
    assert result.get_response()["model_version"] == "1"


def test_the_server_and_the_model_are_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "firstlight"
    assert client.get_model_metadata("chat", "1")["versions"] == ["1"]
    assert not client.is_model_ready("nobody")


def test_what_is_wrong_is_an_error_of_the_client_with_its_sentence(
    client: triton.InferenceServerClient,
) -> None:
    text = triton.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array(["x"], dtype=object))

    with pytest.raises(InferenceServerException, match="temperature: input should be"):
        client.infer("chat", [text], parameters={"temperature": -1.0})
    with pytest.raises(InferenceServerException, match="no model 'nobody' is deployed"):
        client.infer("nobody", [text])


def test_a_text_is_continued_event_by_event(platform: RunningPlatform) -> None:
    asked = {"text_input": PROMPTS[0], "parameters": {"max_tokens": 3, "temperature": 0}}

    whole = platform.client.post("/v2/models/chat/generate", json=asked).json()
    stream = platform.client.post("/v2/models/chat/generate_stream", json=asked).text

    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    told = [json.loads(event) for event in events]
    assert "".join(it["text_output"] for it in told) == whole["text_output"]
    assert (told[-1]["finish_reason"], whole["finish_reason"]) == ("length", "length")
