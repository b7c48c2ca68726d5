"""What a caller asks of the engine and what it gets back."""

from array import array
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Protocol

from infra.errors import ContextLengthExceeded

FinishReason = Literal["stop", "length"]
GuideKind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]
Pooling = Literal["last", "mean"]


@dataclass(frozen=True, slots=True)
class Guide:
    """What the answer must look like.

    `text` is the schema as JSON, the regular expression, the grammar in Lark's notation, or the
    choices as a JSON list of strings; empty for json_object.
    """

    kind: GuideKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen; temperature 0 is greedy.

    `max_tokens` is at least 1, `top_p` in (0, 1], `top_k` 0 for all tokens, `min_p` the smallest
    probability that is kept as a share of the largest. `repetition_penalty` (Keskar et al. 2019)
    is for tokens of prompt and output, `presence_penalty` and `frequency_penalty` (OpenAI) for
    those of the output. `logprobs` None asks for none, k for the chosen token's log-probability
    and those of the k likeliest; `prompt_logprobs` the same for every token of the prompt.

    A `stop` string or one of `stop_token_ids` ends the answer and is not shown. The first
    `min_tokens` end it in no way. With `ignore_eos` the model's own end token does not.

    A request with a `seed` gets the same tokens whatever else is in its batch.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    prompt_logprobs: int | None = None
    guide: Guide | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to compute; `request_id` is unique among those in flight.

    Lower `priority` goes first; `deadline` is in seconds of the engine's clock. Requests of one
    `tenant` share what was computed of their prompts, and the machine is shared among tenants.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    _: KW_ONLY
    priority: int = 0
    deadline: float | None = None
    tenant: str = ""

    @property
    def max_tokens(self) -> int:
        """Tokens that may come after the prompt."""
        return 0

    @property
    def prompt_logprobs(self) -> int | None:
        """See SamplingParams."""
        return None


@dataclass(frozen=True, slots=True)
class GenerationRequest(Request):
    """One prompt to continue."""

    sampling: SamplingParams

    @property
    def max_tokens(self) -> int:
        return self.sampling.max_tokens

    @property
    def prompt_logprobs(self) -> int | None:
        return self.sampling.prompt_logprobs


@dataclass(frozen=True, slots=True)
class EmbeddingRequest(Request):
    """One prompt to make a vector of."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A prompt's vector of length 1, in float32, and how many of its tokens were in the cache."""

    vector: "array[float]"
    cached_tokens: int = 0


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
    """What one token added to one request; a step may give it several.

    `text` is the delta after stop-string hold-back, always whole characters; the texts of a request
    put together are its answer without the stop string. The last output has a `finish_reason`.
    Where `prompt_logprobs` were asked for, the first output has one for each token of the prompt;
    nothing comes before the first token, so its log-probability is not a number. The first output
    says how many of the prompt's tokens were in the cache.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None


class Listener(Protocol):
    """Hears on the event loop what becomes of a request; returns at once."""

    def hear(self, output: Output) -> None:
        """The next token; after one that `is_last` nothing is heard."""
        ...

    def fail(self, error: Exception) -> None:
        """What ended it instead of a last token."""
        ...


def refuse_too_long(request: Request, *, context_tokens: int, kv_tokens: int) -> None:
    """Raises ContextLengthExceeded unless prompt and output fit the context and the KV cache."""
    prompt_tokens, output_tokens = len(request.prompt_token_ids), request.max_tokens
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
