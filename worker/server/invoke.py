"""`POST /invoke`: function-style, a prompt or messages in, text out."""

import orjson

from infra.contracts.generation import InvokeRequest, JsonObject
from infra.generation_requests import output_limit, read_object
from worker.engine.request import Output
from worker.server import sse
from worker.server.answers import Choice
from worker.server.asked import Asked, ChatPrompt, Prompt, TextPrompt
from worker.server.chat import template_message
from worker.server.envelope import Letterhead, Usage

# A raw prompt has no turn to end, so that a model may ramble to the end of its context.
DEFAULT_MAX_TOKENS = 256


def read(data: JsonObject) -> Asked:
    """The request; raises Invalid."""
    request = read_object(InvokeRequest, data)
    return Asked(
        id_prefix="inv-",
        model=None,
        prompts=(_prompt(request),),
        n=request.n or 1,
        max_tokens=output_limit(vars(request)),
        default_max_tokens=None if request.prompt is None else DEFAULT_MAX_TOKENS,
        body=request,
        logprobs=None,
        is_echo=False,
        is_streaming=request.is_streaming,
        events=InvokeEvents,
        answer=InvokeAnswer,
    )


def _prompt(request: InvokeRequest) -> Prompt:
    if request.prompt is not None:
        return TextPrompt(request.prompt)
    return ChatPrompt([template_message(message) for message in request.messages or ()])


class InvokeEvents:
    """Events as in infra.contracts.generation.InvokeEvent."""

    def __init__(self, letterhead: Letterhead) -> None:
        pass

    def delta(self, index: int, output: Output) -> bytes:
        if not output.text and output.finish_reason is None:
            return b""
        return b'data: {"index":%d,"delta":%b,"finish_reason":%b}\n\n' % (
            index,
            orjson.dumps(output.text),
            orjson.dumps(output.finish_reason),
        )

    def closing(self, usage: Usage) -> bytes:
        return sse.event({"index": 0, "delta": "", "usage": usage.members()})


class InvokeAnswer:
    """As infra.contracts.generation.InvokeResponse."""

    def __init__(self, letterhead: Letterhead, choices: int) -> None:
        self._letterhead = letterhead
        self._choices: list[Choice[None]] = [Choice() for _ in range(choices)]

    def add(self, index: int, output: Output) -> int:
        self._choices[index].add(output)
        return len(output.text)

    def whole(self, usage: Usage) -> bytes:
        outputs = [
            {"text": choice.text, "finish_reason": choice.finish_reason} for choice in self._choices
        ]
        return orjson.dumps(
            {
                "id": self._letterhead.id,
                "model": self._letterhead.model,
                "output": outputs[0]["text"],
                "outputs": outputs,
                "usage": usage.members(),
            }
        )
