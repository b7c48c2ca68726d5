"""A valid request becomes engine requests, one a choice.

Where OpenAI and vLLM agree, so do we: `prompt + max_tokens` over the context is refused when the
caller wrote `max_tokens`; what nobody wrote defaults to 16 tokens for completions, to 256 for an
invocation's raw prompt, to the rest of the context for chat, and never more than fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from infra.errors import ContextLengthExceeded, Invalid
from worker.engine.request import GenerationRequest, Guide, SamplingParams
from worker.server.asked import Asked
from worker.server.defaults import SamplingDefaults

_SEED_RANGE = 1 << 64

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """How many tokens fit, and how many a request may ask for at most."""

    context_tokens: int
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a request is computed, and until when (on the engine's clock)."""

    tenant: str = ""
    deadline: float | None = None


def engine_requests(
    asked: Asked,
    prompts: Sequence[tuple[int, ...]],
    *,
    request_id: str,
    limits: OutputLimits,
    defaults: SamplingDefaults,
    caller: Caller = Caller(),
) -> list[GenerationRequest]:
    """One engine request a choice; raises ContextLengthExceeded or Invalid.

    Numbers that the request leaves open are the model's defaults. Choice `j` of any prompt samples
    with `seed + j`: its text is the same whichever other prompts or how many choices are asked for
    with it.
    """
    return [
        GenerationRequest(
            request_id=f"{request_id}-{prompt_index * asked.n + choice}",
            prompt_token_ids=prompt,
            sampling=_sampling(asked, choice, output_tokens(asked, len(prompt), limits), defaults),
            priority=asked.body.priority or 0,
            tenant=caller.tenant,
            deadline=caller.deadline,
        )
        for prompt_index, prompt in enumerate(prompts)
        for choice in range(asked.n)
    ]


def _sampling(
    asked: Asked, choice: int, max_tokens: int, defaults: SamplingDefaults
) -> SamplingParams:
    body = asked.body
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_either(body.temperature, defaults.temperature),
        top_p=_either(body.top_p, defaults.top_p),
        top_k=max(0, _either(body.top_k, defaults.top_k)),
        min_p=_either(body.min_p, defaults.min_p),
        repetition_penalty=_either(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=body.biases,
        seed=None if body.seed is None else (body.seed + choice) % _SEED_RANGE,
        stop=body.stops,
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=min(body.min_tokens or 0, max_tokens),
        logprobs=asked.logprobs,
        prompt_logprobs=asked.logprobs if asked.is_echo else None,
        guide=next((Guide(kind, text) for kind, text in body.guides), None),
    )


def output_tokens(asked: Asked, prompt_tokens: int, limits: OutputLimits) -> int:
    """Tokens this choice may generate: at least one, also where a prompt is only to be scored."""
    rest = limits.context_tokens - prompt_tokens
    most = rest if limits.max_output_tokens is None else min(rest, limits.max_output_tokens)
    if asked.max_tokens is None:
        return most if asked.default_max_tokens is None else min(most, asked.default_max_tokens)
    if asked.max_tokens > rest:
        raise ContextLengthExceeded(
            f"the prompt's {prompt_tokens} tokens and max_tokens ({asked.max_tokens}) exceed the "
            f"context of {limits.context_tokens} tokens",
            hint=f"lower max_tokens to {rest} or less, or leave it out",
            param="max_tokens",
            prompt_tokens=prompt_tokens,
            limit=limits.context_tokens,
        )
    if asked.max_tokens > most:
        raise Invalid(
            f"max_tokens ({asked.max_tokens}) is more than this model's limit of {most}",
            param="max_tokens",
            limit=most,
        )
    return max(1, asked.max_tokens)


def _either(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked
