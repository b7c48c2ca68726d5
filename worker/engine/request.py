"""What a caller asks of the engine and what it gets back."""

from dataclasses import dataclass
from typing import Literal

from infra.errors import ContextLengthExceeded, PlatformError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen; temperature 0 is greedy.

    `max_tokens` is at least 1, `top_p` in (0, 1]. `logprobs` None asks for none, k for the chosen
    token's log-probability and those of the k likeliest. A request with a `seed` gets the same
    tokens whatever else is in its batch.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue; `request_id` is unique among those in flight."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its exact spelling and its natural-log probability before temperature."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """What one step added to one request.

    `text` is the delta after stop-string hold-back, always whole characters; the texts of a request
    put together are its answer without the stop string. The last output has a `finish_reason` or
    an `error`.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    error: PlatformError | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


def refuse_too_long(request: GenerationRequest, *, context_tokens: int, kv_tokens: int) -> None:
    """Raises ContextLengthExceeded unless prompt and output fit the context and the KV cache."""
    prompt_tokens, output_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    limit = min(context_tokens, kv_tokens)
    if prompt_tokens + output_tokens <= limit:
        return
    what = "context" if context_tokens <= kv_tokens else "replica's KV cache"
    raise ContextLengthExceeded(
        f"the prompt's {prompt_tokens} tokens plus {output_tokens} of output exceed the {what} "
        f"of {limit} tokens",
        hint="shorten the prompt or lower max_tokens",
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        limit=limit,
    )
