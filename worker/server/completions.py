"""`POST /v1/completions` in OpenAI's words."""

from functools import partial

import orjson

from infra.contracts.generation import CompletionRequest, JsonObject
from infra.generation_requests import output_limit, read_object
from worker.engine.request import Output
from worker.server import sse
from worker.server.answers import Choice
from worker.server.asked import Asked, Prompt, TextPrompt, TokenPrompt, written_prompt
from worker.server.envelope import Letterhead, Usage
from worker.server.logprobs import CompletionEntries, TextOffsets, completion_object

DEFAULT_MAX_TOKENS = 16  # OpenAI's own default for this endpoint

_KIND = "text_completion"


def read(data: JsonObject) -> Asked:
    """The request; raises Invalid."""
    request = read_object(CompletionRequest, data)
    options = request.stream_options
    return Asked(
        id_prefix="cmpl-",
        model=request.model,
        prompts=_prompts(request),
        n=request.n or 1,
        max_tokens=output_limit(vars(request)),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        body=request,
        logprobs=request.logprobs,
        is_echo=bool(request.echo),
        is_streaming=request.is_streaming,
        events=partial(CompletionEvents, with_usage=options is not None and options.include_usage),
        answer=partial(CompletionAnswer, with_logprobs=request.logprobs is not None),
    )


def _prompts(request: CompletionRequest) -> tuple[Prompt, ...]:
    match request.prompt:
        case str(text):
            return (TextPrompt(text),)
        case [int(), *_] as token_ids:
            return (TokenPrompt(token_ids),)  # type: ignore[arg-type]
        case many:
            return tuple(map(written_prompt, many))  # type: ignore[arg-type]


class CompletionEvents:
    """Chunks of a completion; what is the same in every chunk is written once."""

    def __init__(self, letterhead: Letterhead, *, with_usage: bool) -> None:
        self._opening = letterhead.opening(_KIND)
        self._choice_openings: dict[int, bytes] = {}
        self._offsets: dict[int, TextOffsets] = {}
        self._with_usage = with_usage
        self._end = b'}],"usage":null}\n\n' if with_usage else b"}]}\n\n"

    def delta(self, index: int, output: Output) -> bytes:
        opening = self._choice_openings.get(index)
        if opening is None:
            opening = b'data: %b"choices":[{"index":%d,"text":' % (self._opening, index)
            self._choice_openings[index] = opening
        event = b""
        if output.text or output.logprobs:
            event = self._event(opening, orjson.dumps(output.text), self._logprobs(index, output))
        if output.finish_reason is None:
            return event
        reason = b'"%b"' % output.finish_reason.encode()
        return event + self._event(opening, b'""', b"null", reason)

    def closing(self, usage: Usage) -> bytes:
        if not self._with_usage:
            return sse.DONE
        last = b'data: %b"choices":[],"usage":%b}\n\n' % (self._opening, usage.written())
        return last + sse.DONE

    def _logprobs(self, index: int, output: Output) -> bytes:
        if not output.logprobs:
            return b"null"
        offsets = self._offsets.setdefault(index, TextOffsets())
        return completion_object([offsets.entries(output.logprobs)])

    def _event(
        self, opening: bytes, text: bytes, logprobs: bytes, reason: bytes = b"null"
    ) -> bytes:
        return b'%b%b,"logprobs":%b,"finish_reason":%b%b' % (
            opening,
            text,
            logprobs,
            reason,
            self._end,
        )


class CompletionAnswer:
    """A whole completion."""

    def __init__(self, letterhead: Letterhead, choices: int, *, with_logprobs: bool) -> None:
        self._opening = letterhead.opening(_KIND)
        self._choices: list[Choice[CompletionEntries]] = [Choice() for _ in range(choices)]
        self._offsets = [TextOffsets() for _ in range(choices)]
        self._with_logprobs = with_logprobs

    def add(self, index: int, output: Output) -> int:
        choice = self._choices[index]
        choice.add(output)
        if not output.logprobs:
            return len(output.text)
        choice.entries.append(self._offsets[index].entries(output.logprobs))
        return len(output.text) + choice.entries[-1].byte_count

    def whole(self, usage: Usage) -> bytes:
        choices = b",".join(self._written(index) for index in range(len(self._choices)))
        return b'%b"choices":[%b],"usage":%b}' % (self._opening, choices, usage.written())

    def _written(self, index: int) -> bytes:
        choice = self._choices[index]
        logprobs = orjson.Fragment(completion_object(choice.entries))
        return orjson.dumps(
            {
                "index": index,
                "text": choice.text,
                "logprobs": logprobs if self._with_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
        )
