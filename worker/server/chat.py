"""`POST /v1/chat/completions` in OpenAI's words."""

from functools import partial

import orjson

from infra.contracts.generation import ChatCompletionRequest, ChatMessage, JsonObject
from infra.generation_requests import output_limit, read_object
from worker.engine.request import Output
from worker.server import sse
from worker.server.answers import Choice
from worker.server.asked import Asked, ChatPrompt
from worker.server.envelope import Letterhead, Usage
from worker.server.logprobs import chat_entries

_ROLE_DELTA = b'{"role":"assistant","content":"","refusal":null}'


def read(data: JsonObject) -> Asked:
    """The request; raises Invalid."""
    request = read_object(ChatCompletionRequest, data)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    options = request.stream_options
    return Asked(
        id_prefix="chatcmpl-",
        model=request.model,
        prompts=(ChatPrompt([template_message(message) for message in request.messages]),),
        n=request.n or 1,
        max_tokens=output_limit(vars(request)),
        default_max_tokens=None,
        body=request,
        logprobs=logprobs,
        is_echo=False,
        is_streaming=request.is_streaming,
        events=partial(ChatEvents, with_usage=options is not None and options.include_usage),
        answer=partial(ChatAnswer, with_logprobs=logprobs is not None),
    )


def template_message(message: ChatMessage) -> dict[str, str]:
    """As chat templates know it: `developer` is OpenAI's newer word for `system`."""
    role = "system" if message.role == "developer" else message.role
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": message.text(), **named}


class ChatEvents:
    """Chunks of a chat completion; what is the same in every chunk is written once."""

    def __init__(self, letterhead: Letterhead, *, with_usage: bool) -> None:
        self._opening = letterhead.opening("chat.completion.chunk")
        self._choice_openings: dict[int, bytes] = {}
        self._with_usage = with_usage
        self._end = b'}],"usage":null}\n\n' if with_usage else b"}]}\n\n"
        self._text_end = b'},"logprobs":null,"finish_reason":null' + self._end

    def delta(self, index: int, output: Output) -> bytes:
        opening = self._choice_openings.get(index)
        if opening is None:
            opening = b'data: %b"choices":[{"index":%d,"delta":' % (self._opening, index)
            self._choice_openings[index] = opening
            return self._bare(opening, _ROLE_DELTA) + self._content(opening, output)
        return self._content(opening, output)

    def closing(self, usage: Usage) -> bytes:
        if not self._with_usage:
            return sse.DONE
        last = b'data: %b"choices":[],"usage":%b}\n\n' % (self._opening, usage.written())
        return last + sse.DONE

    def _content(self, opening: bytes, output: Output) -> bytes:
        event = b""
        if output.logprobs:
            event = b'%b{"content":%b},"logprobs":{"content":[%b],"refusal":null}%b%b' % (
                opening,
                orjson.dumps(output.text),
                chat_entries(output.logprobs),
                b',"finish_reason":null',
                self._end,
            )
        elif output.text:
            event = b'%b{"content":%b%b' % (opening, orjson.dumps(output.text), self._text_end)
        if output.finish_reason is None:
            return event
        return event + self._bare(opening, b"{}", b'"%b"' % output.finish_reason.encode())

    def _bare(self, opening: bytes, delta: bytes, reason: bytes = b"null") -> bytes:
        return b'%b%b,"logprobs":null,"finish_reason":%b%b' % (opening, delta, reason, self._end)


class ChatAnswer:
    """A whole chat completion."""

    def __init__(self, letterhead: Letterhead, choices: int, *, with_logprobs: bool) -> None:
        self._opening = letterhead.opening("chat.completion")
        self._choices: list[Choice[bytes]] = [Choice() for _ in range(choices)]
        self._with_logprobs = with_logprobs

    def add(self, index: int, output: Output) -> int:
        choice = self._choices[index]
        choice.add(output)
        if not output.logprobs:
            return len(output.text)
        choice.entries.append(chat_entries(output.logprobs))
        return len(output.text) + len(choice.entries[-1])

    def whole(self, usage: Usage) -> bytes:
        choices = b",".join(self._written(index) for index in range(len(self._choices)))
        return b'%b"choices":[%b],"usage":%b}' % (self._opening, choices, usage.written())

    def _written(self, index: int) -> bytes:
        choice = self._choices[index]
        entries = b'{"content":[%b],"refusal":null}' % b",".join(choice.entries)
        return orjson.dumps(
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": orjson.Fragment(entries) if self._with_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
        )
