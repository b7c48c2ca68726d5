"""A body becomes a valid request for a model, or the error that says why it is none."""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from infra.contracts.generation import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    GenerationBody,
    InvokeRequest,
    JsonObject,
)
from infra.contracts.revision import Revision
from infra.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    Invalid,
    MalformedJson,
    ModelNotFound,
)

MOST_ERRORS = 100
_LARGE_BYTES = 64 << 10
_MOST_MEMBERS = 256  # each one unknown is a problem to describe
_MOST_GUESSED = 500
_SHOWN_NAME = 64

Body = TypeVar("Body", bound=BaseModel)


def read_request(contract: type[Body], body: bytes) -> Body:
    """The request in a body; raises MalformedJson or Invalid.

    While a large body is read, the garbage collector rests: a hostile one of a million empty lists
    would have it walk through all of them, and JSON makes no cycles.
    """
    if len(body) < _LARGE_BYTES or not gc.isenabled():
        return validated(contract, json_object(body))
    gc.disable()
    try:
        return validated(contract, json_object(body))
    except Invalid as error:
        error.__context__ = None  # its frames hold the data
        raise error.with_traceback(None) from None
    finally:
        gc.enable()


def json_object(body: bytes) -> JsonObject:
    """The body as a JSON object; raises MalformedJson or Invalid.

    orjson refuses NaN, invalid UTF-8, lone surrogates and nesting beyond 1,024 levels.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(
            f"the body is not JSON: {error.msg}", line=error.lineno, column=error.colno
        ) from None
    if not isinstance(data, dict):
        raise Invalid("the body is not a JSON object")
    return data


def validated(contract: type[Body], data: Any) -> Body:
    """The contract's value; raises Invalid that lists everything wrong with the data."""
    if isinstance(data, dict) and len(data) > _MOST_MEMBERS:
        raise Invalid(f"the body has {len(data)} members", limit=_MOST_MEMBERS)
    try:
        return contract.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise invalid(details, data) from None


def refuse_what_cannot_fit(request: GenerationBody, body_bytes: int, revision: Revision) -> None:
    """Raises for a request that no replica of the revision could serve; wakes nothing to know.

    Text is judged by a bound that is certain: no token spells more than `longest_token_bytes`. A
    replica, which tokenises, may still refuse what passes here.
    """
    limits, facts = revision.spec.limits, revision.facts
    if body_bytes > limits.max_body_bytes:
        raise BodyTooLarge(
            f"the body has {body_bytes} bytes; {revision.model} takes {limits.max_body_bytes}",
            hint="limits.max_body_bytes of the model sets the limit",
            limit=limits.max_body_bytes,
        )
    wanted = request.output_limit
    if wanted is not None and limits.max_output_tokens and wanted > limits.max_output_tokens:
        raise Invalid(
            f"max_tokens is {wanted}; {revision.model} gives {limits.max_output_tokens} at most",
            param="max_tokens",
            limit=limits.max_output_tokens,
        )
    if isinstance(request, InvokeRequest) and (request.prompt is None) == (
        request.messages is None
    ):
        raise Invalid("give either prompt or messages", param="prompt")
    context_tokens = _context_tokens(revision)
    room = context_tokens - (wanted or 1)
    text_fits = body_bytes <= room * facts.longest_token_bytes  # JSON never makes text shorter
    if text_fits and not isinstance(request, CompletionRequest):
        return
    for prompt in _prompts(request):
        if isinstance(prompt, list):
            _refuse_unknown_tokens(prompt, facts.vocabulary)
            least_tokens = len(prompt)
        else:
            least_tokens = -(-sum(map(_utf8_bytes, prompt)) // facts.longest_token_bytes)
        if least_tokens > room:
            raise _too_long(least_tokens, wanted, context_tokens)


def model_not_found(name: str, known: Iterable[str]) -> ModelNotFound:
    """The error for a name that nothing has, with a guess at what was meant."""
    shown = name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}…"
    guesses = get_close_matches(
        name[:_SHOWN_NAME].lower(), list(islice(known, _MOST_GUESSED)), n=1, cutoff=0.6
    )
    return ModelNotFound(
        f"no model {shown!r} is deployed",
        hint=f"did you mean {guesses[0]}?" if guesses else "`platform ls` shows what is deployed",
        param="model",
    )


# -- what a prompt is ------------------------------------------------------------------------------

_Prompt = list[int] | tuple[str, ...]


def _prompts(request: GenerationBody) -> Iterator[_Prompt]:
    """Each prompt as token ids, or as texts of which none is shorter where a model reads it."""
    match request:
        case ChatCompletionRequest():
            yield _texts(request.messages)
        case InvokeRequest():
            yield _texts(request.messages or ()) or (request.prompt or "",)
        case CompletionRequest(prompt=str(text)):
            yield (text,)
        case CompletionRequest(prompt=many):
            yield from _each(many)


def _texts(messages: Iterable[ChatMessage]) -> tuple[str, ...]:
    """Chat templates may trim a message, never more."""
    return tuple(message.text().strip() for message in messages)


def _each(prompts: list[str] | list[int] | list[list[int]] | str) -> Iterator[_Prompt]:
    if isinstance(prompts[0], int):
        yield prompts  # type: ignore[misc]
        return
    for prompt in prompts:
        yield (prompt,) if isinstance(prompt, str) else prompt  # type: ignore[misc]


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _refuse_unknown_tokens(prompt: list[int], vocabulary: int) -> None:
    if prompt and not (min(prompt) >= 0 and max(prompt) < vocabulary):
        raise Invalid(
            f"a token id is not in 0 … {vocabulary - 1}", param="prompt", vocabulary=vocabulary
        )


def _context_tokens(revision: Revision) -> int:
    own = revision.spec.engine.max_context_tokens
    facts = revision.facts.context_tokens
    return facts if own is None else min(own, facts)


def _too_long(least_tokens: int, wanted: int | None, context_tokens: int) -> ContextLengthExceeded:
    output = "" if wanted is None else f" and max_tokens ({wanted})"
    return ContextLengthExceeded(
        f"the prompt's {least_tokens} tokens or more{output} exceed the context of "
        f"{context_tokens} tokens",
        hint="shorten the prompt" if wanted is None else "shorten the prompt or lower max_tokens",
        param="max_tokens" if wanted is not None and wanted >= context_tokens else "prompt",
        prompt_tokens_at_least=least_tokens,
        limit=context_tokens,
    )


# -- what is wrong with it -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fault:
    """One value that is wrong; a union says so once a branch."""

    steps: tuple[str | int, ...]
    messages: tuple[str, ...]

    @property
    def pointer(self) -> str:
        """A JSON pointer in URI fragment form (RFC 6901, section 6)."""
        return "#" + "".join(f"/{_escaped(step)}" for step in self.steps)

    @property
    def param(self) -> str:
        """As OpenAI writes it: `messages[3].role`."""
        named = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        return "".join(named).removeprefix(".")


def invalid(details: Sequence[Mapping[str, Any]], data: Any) -> Invalid:
    """The error that lists what pydantic found wrong with the data; at least one thing."""
    faults = _faults(details, data)
    first = faults[0]
    more = "" if len(faults) == 1 else f" (and {len(faults) - 1} more problems)"
    return Invalid(
        f"{first.param or 'the body'}: {' or '.join(first.messages)}{more}",
        param=first.param or None,
        errors=[
            {"pointer": fault.pointer, "message": " or ".join(fault.messages)}
            for fault in faults[:MOST_ERRORS]
        ],
    )


def _faults(details: Sequence[Mapping[str, Any]], data: Any) -> list[_Fault]:
    by_steps: dict[tuple[str | int, ...], dict[str, None]] = {}
    for detail in details:
        steps = tuple(_steps(detail["loc"], data))
        by_steps.setdefault(steps, {})[_lowered(detail["msg"])] = None
    return [_Fault(steps, tuple(messages)) for steps, messages in by_steps.items()]


def _steps(location: tuple[str | int, ...], data: Any) -> Iterator[str | int]:
    """The location in the caller's data: what pydantic adds to name a union's branch is left out,
    and so is everything below a value that is not what the branch expects."""
    for depth, part in enumerate(location):
        match part, data:
            case int(), list() if part < len(data):
                yield part
                data = data[part]
            case str(), dict() if part in data or depth == len(location) - 1:
                yield part
                data = data.get(part)


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
