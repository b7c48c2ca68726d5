"""How a client may ask for tokens to be chosen, whatever the request: sampling, stops, guides."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_STOPS = 16
MAX_STOP_TOKENS = 1024
MAX_BIASED_TOKENS = 1024
MAX_CHOICES = 64
MAX_GUIDE_CHARACTERS = 1 << 16
MAX_GUIDE_DEPTH = 64
MAX_GUIDE_CHOICES = 1000
MAX_PRIORITY = 1000

GuideKind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Priority = Annotated[
    int | None,
    Field(
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="Lower goes first: among your tenant's held requests, and on a busy replica.",
    ),
]


class Wire(BaseModel):
    """Strict about the types of what it knows, quiet about fields of newer clients."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class StreamOptions(Wire):
    """`stream_options` of the OpenAI API."""

    include_usage: bool = False


class JsonSchema(Wire):
    """`response_format.json_schema` of the OpenAI API."""

    name: str | None = Field(default=None, max_length=256)
    description: str | None = Field(default=None, max_length=4096)
    strict: bool | None = None
    content: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Wire):
    """`response_format` of the OpenAI API."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


GuideText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_GUIDE_CHARACTERS)]


class StructuredOutputs(Wire):
    """`structured_outputs` of vLLM's API: exactly one of its members."""

    content: dict[str, Any] | GuideText | None = Field(default=None, alias="json")
    regex: GuideText | None = None
    choice: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=4096)]],
            Field(min_length=1, max_length=MAX_GUIDE_CHOICES, fail_fast=True),
        ]
        | None
    ) = None
    grammar: GuideText | None = None
    json_object: Literal[True] | None = None


class SamplingFields(Wire):
    """What every request for text has; documented field by field."""

    temperature: float | None = Field(
        default=None, ge=0, le=100, strict=False, description="0 takes the likeliest token."
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, strict=False, description="Mass of the likeliest tokens kept."
    )
    top_k: int | None = Field(
        default=None, ge=-1, le=1 << 24, description="Likeliest tokens kept; -1 or 0 keeps all."
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        strict=False,
        description="Least probability kept, as a share of the largest.",
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=100,
        strict=False,
        description="Over 1 makes tokens of prompt and answer less likely.",
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, strict=False, description="Taken from tokens of the answer."
    )
    frequency_penalty: float | None = Field(
        default=None,
        ge=-2,
        le=2,
        strict=False,
        description="Taken from tokens of the answer, as often as they occur.",
    )
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100, strict=False)],
            ],
            Field(max_length=MAX_BIASED_TOKENS),
        ]
        | None
    ) = Field(default=None, description="Added to tokens' logits, by token id.")
    seed: int | None = Field(
        default=None,
        ge=-(1 << 63),
        lt=1 << 63,
        description="The same seed gives the same answer.",
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = Field(
        default=None, description="Texts that end the answer and are left out."
    )
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOP_TOKENS)] | None = Field(
        default=None, description="Tokens that end the answer and are left out."
    )
    ignore_eos: bool | None = Field(
        default=None, description="The model's own end token does not end the answer."
    )
    min_tokens: int | None = Field(
        default=None, ge=0, le=1 << 31, description="Tokens before which nothing ends the answer."
    )
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="Answers a prompt.")
    stream: bool | None = Field(default=None, description="Server-sent events, as tokens come.")
    stream_options: StreamOptions | None = Field(
        default=None, description="`include_usage` adds an event with the number of tokens."
    )
    response_format: ResponseFormat | None = Field(
        default=None, description="`text`, `json_object` or `json_schema`, as at OpenAI."
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None,
        description="One of `json`, `regex`, `choice`, `grammar`, `json_object`, as at vLLM.",
    )
    priority: Priority = None

    @property
    def guides(self) -> list[tuple[GuideKind, str]]:
        """What the answer must look like, in every way the request says it: kind and text."""
        return guides_of(self.response_format, self.structured_outputs)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """The logit biases by token id, each id once."""
        by_id = {int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()}
        return tuple(by_id.items())

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


def guides_of(
    form: ResponseFormat | None, outputs: StructuredOutputs | None
) -> list[tuple[GuideKind, str]]:
    """See SamplingFields.guides."""
    found: list[tuple[GuideKind, str]] = []
    match form:
        case ResponseFormat(type="json_object"):
            found.append(("json_object", ""))
        case ResponseFormat(type="json_schema", json_schema=JsonSchema(content=schema)):
            found.append(("json_schema", json.dumps(schema)))
        case _:
            pass
    if outputs is not None:
        if isinstance(outputs.content, str):
            found.append(("json_schema", outputs.content))
        elif outputs.content is not None:
            found.append(("json_schema", json.dumps(outputs.content)))
        if outputs.regex is not None:
            found.append(("regex", outputs.regex))
        if outputs.choice is not None:
            found.append(("choice", json.dumps(outputs.choice)))
        if outputs.grammar is not None:
            found.append(("grammar", outputs.grammar))
        if outputs.json_object:
            found.append(("json_object", ""))
    return found
