"""What a client may ask of a generation: OpenAI chat and completions, and function-style invoke."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.contracts.openai import Usage
from infra.contracts.sampling import MAX_CHOICES, SamplingFields, Wire

MAX_MESSAGES = 10_000


class TextPart(Wire):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Wire):
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


class ChatCompletionRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    model: str = Field(max_length=256, description="A deployed model's name.")
    messages: Messages = Field(description="The conversation; content is text.")
    max_tokens: int | None = Field(
        default=None, ge=1, le=1 << 31, description="Tokens at most; else as many as fit."
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=1, le=1 << 31, description="The newer name of `max_tokens`."
    )
    logprobs: bool | None = Field(default=None, description="Log-probabilities of the answer.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Likeliest tokens told with each."
    )


TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
)


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`; every prompt gets `n` choices."""

    model: str = Field(max_length=256, description="A deployed model's name.")
    prompt: Prompt = Field(description="Text, token ids, or a list of either.")
    max_tokens: int | None = Field(
        default=None,
        ge=0,
        le=1 << 31,
        description="Tokens at most, else 16; 0 with `echo` scores the prompt alone.",
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Log-probabilities, with so many likeliest tokens."
    )
    echo: bool | None = Field(
        default=None, description="Puts the prompt before the answer, with its log-probabilities."
    )


class InvokeRequest(SamplingFields):
    """`POST /v1/models/{name}/invoke`: `prompt` or `messages`, in; text, out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    prompt: str | None = Field(default=None, description="Text to continue.")
    messages: Messages | None = Field(default=None, description="Or a conversation to answer.")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1 << 31,
        description="Tokens at most; else 256 after a prompt, as many as fit after messages.",
    )


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
    usage: Usage


class InvokeEvent(BaseModel):
    """One server-sent event of a streaming invocation; the last one carries `usage`."""

    index: int = 0
    delta: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None


GenerationBody = ChatCompletionRequest | CompletionRequest | InvokeRequest
JsonObject = dict[str, Any]
