"""Says which requests a revision can never serve, and which model was meant."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Final

from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import (
    ChatCompletionRequest,
    ChatMessage,
    InvokeRequest,
)
from infra.contracts.revision import ModelFacts, Revision
from infra.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    Invalid,
    ModelNotFound,
)
from infra.generation_requests import Given, ModelBody, output_limit

_MOST_GUESSED = 500
_SHOWN_NAME = 64
_OF_TEXT: Final = (ChatCompletionRequest, InvokeRequest)  # never of token ids


class Bounds:
    """What a revision's requests are held to; read once, for a contract's attributes cost more to
    read than all that is done with them."""

    __slots__ = (
        "bytes_per_token",
        "context_tokens",
        "facts",
        "max_body_bytes",
        "max_output_tokens",
        "model",
        "name",
    )

    def __init__(self, revision: Revision) -> None:
        own, most = revision.spec.engine.max_context_tokens, revision.facts.context_tokens
        self.name: Final = revision.name
        self.model: Final = revision.model
        self.facts: Final = revision.facts
        self.context_tokens: Final = most if own is None else min(own, most)
        self.max_body_bytes: Final = revision.spec.limits.max_body_bytes
        self.max_output_tokens: Final = revision.spec.limits.max_output_tokens
        self.bytes_per_token: Final = (
            # JSON never makes text shorter, and a word with the space after it has two bytes
            2 if revision.facts.splits_words else revision.facts.longest_token_bytes
        )


def refuse_what_cannot_fit(
    contract: type[ModelBody], given: Given, body_bytes: int, bounds: Bounds
) -> None:
    """Raises for a request that no replica of the revision could serve; wakes nothing to know.

    Text is judged by bounds that are certain: see `longest_token_bytes` and `splits_words`. A
    replica, which tokenises, may still refuse what passes here.
    """
    if body_bytes > bounds.max_body_bytes:
        raise BodyTooLarge(
            f"the body has {body_bytes} bytes; {bounds.model} takes {bounds.max_body_bytes}",
            hint="limits.max_body_bytes of the model sets the limit",
            limit=bounds.max_body_bytes,
        )
    room = bounds.context_tokens
    wanted, param = None, "input"
    if contract is EmbeddingsRequest:
        _refuse_dimensions(given.get("dimensions"), bounds.facts)
    else:
        wanted, param = output_limit(given), "prompt"
        _refuse_output(wanted, bounds)
        room -= wanted or 1
    text_fits = body_bytes <= room * bounds.bytes_per_token
    if text_fits and contract in _OF_TEXT:
        return
    facts = bounds.facts
    for prompt in _prompts(contract, given):
        if isinstance(prompt, list):
            _refuse_unknown_tokens(prompt, facts.vocabulary, param)
            least_tokens = len(prompt)
        else:
            least_tokens = max(1, sum(_least_tokens(text, facts) for text in prompt))
        if least_tokens > room:
            raise _too_long(least_tokens, wanted, bounds.context_tokens, param)


def sequences_of(contract: type[ModelBody], given: Given) -> int:
    """How many sequences a replica makes of a request: one for each answer or vector."""
    if contract is InvokeRequest:
        return 1
    answers: int = given.get("n") or 1
    if contract is ChatCompletionRequest:
        return answers
    prompts = given["input" if contract is EmbeddingsRequest else "prompt"]
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        return answers
    return len(prompts) * answers


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


def _prompts(contract: type[ModelBody], given: Given) -> Iterator[_Prompt]:
    """Each prompt as token ids, or as texts of which none is shorter where a model reads it."""
    if (messages := given.get("messages")) is not None:
        yield _texts(messages)
        return
    prompts = given["input" if contract is EmbeddingsRequest else "prompt"]
    if isinstance(prompts, str):
        yield (prompts,)
    else:
        yield from _each(prompts)


def _texts(messages: Iterable[ChatMessage]) -> tuple[str, ...]:
    """Chat templates may trim a message, never more."""
    return tuple(message.text().strip() for message in messages)


def _each(prompts: list[str] | list[int] | list[list[int]] | str) -> Iterator[_Prompt]:
    if isinstance(prompts[0], int):
        yield prompts  # type: ignore[misc]
        return
    for prompt in prompts:
        yield (prompt,) if isinstance(prompt, str) else prompt  # type: ignore[misc]


def _least_tokens(text: str, facts: ModelFacts) -> int:
    """No tokenizer with these facts makes fewer tokens of the text, also where its first word
    touches the text before it."""
    data = text.encode()
    by_length = len(data) // facts.longest_token_bytes
    return max(by_length, len(data.split()) - 1) if facts.splits_words else by_length


def _refuse_unknown_tokens(prompt: list[int], vocabulary: int, param: str) -> None:
    if prompt and not (min(prompt) >= 0 and max(prompt) < vocabulary):
        raise Invalid(
            f"a token id is not in 0 … {vocabulary - 1}", param=param, vocabulary=vocabulary
        )


def _refuse_output(wanted: int | None, bounds: Bounds) -> None:
    most = bounds.max_output_tokens
    if wanted is not None and most and wanted > most:
        raise Invalid(
            f"max_tokens is {wanted}; {bounds.model} gives {most} at most",
            param="max_tokens",
            limit=most,
        )


def _refuse_dimensions(wanted: int | None, facts: ModelFacts) -> None:
    most = facts.hidden_size
    if wanted is not None and most is not None and wanted > most:
        raise Invalid(
            f"dimensions is {wanted}; the model's vectors have {most}",
            param="dimensions",
            limit=most,
        )


def _too_long(
    least_tokens: int, wanted: int | None, context_tokens: int, param: str
) -> ContextLengthExceeded:
    output = "" if wanted is None else f" and max_tokens ({wanted})"
    return ContextLengthExceeded(
        f"the {param}'s {least_tokens} tokens or more{output} exceed the context of "
        f"{context_tokens} tokens",
        hint=f"shorten the {param}" + ("" if wanted is None else " or lower max_tokens"),
        param="max_tokens" if wanted is not None and wanted >= context_tokens else param,
        prompt_tokens_at_least=least_tokens,
        limit=context_tokens,
    )
