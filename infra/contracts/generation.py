"""What a client may ask of a generation: OpenAI chat and completions, and function-style invoke."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_STOPS = 16
MAX_CHOICES = 64
MAX_MESSAGES = 10_000

StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class _Wire(BaseModel):
    """Strict about the types of what it knows, quiet about fields of newer clients."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class StreamOptions(_Wire):
    """`stream_options` of the OpenAI API."""

    include_usage: bool = False


class _Sampling(_Wire):
    temperature: float | None = Field(default=None, ge=0, le=100, strict=False)
    top_p: float | None = Field(default=None, gt=0, le=1, strict=False)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, whichever way they were written."""
        match self.stop:
            case None:
                return ()
            case str(one):
                return (one,)
            case many:
                return tuple(many)

    @property
    def is_streaming(self) -> bool:
        return bool(self.stream)


class TextPart(_Wire):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Wire):
    """One message; only text is understood."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = Field(default=None, max_length=256)

    def text(self) -> str:
        """The content as one string."""
        match self.content:
            case None:
                return ""
            case str(text):
                return text
            case parts:
                return "".join(part.text for part in parts)


# Long lists stop at their first bad entry: a million of them would cost seconds to describe.
Messages = Annotated[
    list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
]


class ChatCompletionRequest(_Sampling):
    """`POST /v1/chat/completions`."""

    model: str = Field(max_length=256)
    messages: Messages
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 31)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def output_limit(self) -> int | None:
        """The larger-named of the two spellings wins, as in the OpenAI API."""
        return self.max_completion_tokens or self.max_tokens


TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
)


class CompletionRequest(_Sampling):
    """`POST /v1/completions`; every prompt gets `n` choices."""

    model: str = Field(max_length=256)
    prompt: Prompt
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 31)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens


class InvokeRequest(_Sampling):
    """`POST /v1/models/{name}/invoke`: `prompt` or `messages`, in; text, out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    prompt: str | None = None
    messages: Messages | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 31)

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens


class InvokeUsage(BaseModel):
    """Tokens in, tokens out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class InvokeOutput(BaseModel):
    """One finished text."""

    text: str
    finish_reason: Literal["stop", "length"]


class InvokeResponse(BaseModel):
    """The answer to an invocation; `output` repeats the first of `outputs`."""

    id: str
    model: str
    output: str
    outputs: list[InvokeOutput]
    usage: InvokeUsage


class InvokeEvent(BaseModel):
    """One server-sent event of a streaming invocation; the last one carries `usage`."""

    index: int = 0
    delta: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    usage: InvokeUsage | None = None


GenerationBody = ChatCompletionRequest | CompletionRequest | InvokeRequest
JsonObject = dict[str, Any]
