"""What a user writes in `model.yaml`."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    field_validator,
    model_validator,
)

from infra.contracts.base import MODEL_NAME_PATTERN, Contract, ModelName
from infra.contracts.image import MOST_IMAGE_CHARACTERS, checked_image

SOURCE_PATTERN = re.compile(
    r"^(?:file:///[^\0]{1,4000}"
    r"|hf://[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}(?:@[A-Za-z0-9._/-]{1,128})?"
    r"|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[^\0]{0,1000})?"
    r"|oci://[A-Za-z0-9.:-]{1,260}/[a-z0-9._/-]{1,255}(?::[A-Za-z0-9._-]{1,128})?"
    r"(?:@sha256:[0-9a-f]{64})?)$"
)

Seconds = Annotated[float, Field(ge=0, le=7 * 24 * 3600, strict=False)]
AUTO = "auto"


def _tuple_of_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _none_for_auto(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value != AUTO:
        raise ValueError(f"must be {AUTO} or a number of seconds")
    return None


SecondsOrAuto = Annotated[
    Seconds | None,
    BeforeValidator(_none_for_auto, json_schema_input_type=Seconds | Literal["auto"]),
    PlainSerializer(
        lambda seconds: AUTO if seconds is None else seconds, return_type=float | Literal["auto"]
    ),
]
"""Seconds, or None where the user wrote `auto`, as which it is written again."""


def checked_source(source: str) -> str:
    """The source itself; raises ValueError for what no source is written like."""
    if not SOURCE_PATTERN.match(source):
        raise ValueError(
            "is not file:///dir, hf://org/repo@revision, s3://bucket/prefix or"
            " oci://host/repository:tag"
        )
    return source


class EngineSettings(Contract):
    """How a worker runs the model; every field has a default that works."""

    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="Number format of weights and arithmetic; auto follows the model.",
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        default="none",
        description="Bits that float weights are rounded to when they are loaded.",
    )
    max_context_tokens: int | None = Field(
        default=None, ge=16, le=1 << 20, description="Prompt plus output; unset follows the model."
    )
    kv_cache_tokens: int | None = Field(
        default=None, ge=16, le=1 << 26, description="KV positions to allocate; unset sizes itself."
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = Field(
        default="auto",
        description="Number format of keys and values; auto follows `engine.dtype`.",
    )
    block_size: Literal[16, 32, 64] = Field(default=16, description="KV positions a block.")
    prefix_cache: bool = Field(
        default=True, description="Prompts that begin alike share what was computed of it."
    )
    pooling: Literal["last", "mean"] = Field(
        default="last",
        description="What an embedding is made of: the state of the last token, or all their mean.",
    )
    speculation: Literal["none", "ngram", "draft"] = Field(
        default="ngram",
        description="Computes guesses of what follows: as the text went on before, or a draft's.",
    )
    draft_source: str | None = Field(
        default=None,
        max_length=4096,
        description="The draft model, as `source`; for `speculation: draft`, and only then.",
    )
    draft_quantization: Literal["none", "int8", "int4"] = Field(
        default="int4", description="Bits that the draft model's float weights are rounded to."
    )
    max_batch_size: int = Field(default=32, ge=1, le=1024, description="Sequences in one step.")
    token_budget: int = Field(
        default=256, ge=16, le=65536, description="Tokens one step may compute (chunked prefill)."
    )
    tensor_parallel: int = Field(
        default=1, ge=1, le=16, description="Processes (or GPUs) that divide the model."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads; unset takes the node's cores."
    )

    @field_validator("draft_source")
    @classmethod
    def _known_scheme(cls, source: str | None) -> str | None:
        return None if source is None else checked_source(source)

    @model_validator(mode="after")
    def _draft_where_it_guesses(self) -> Self:
        if (self.speculation == "draft") != (self.draft_source is not None):
            raise ValueError("speculation: draft and a draft_source come together")
        return self


class Resources(Contract):
    """What one replica occupies on a node."""

    gpus: int = Field(default=0, ge=0, le=16, description="GPUs a replica; 0 runs on the CPU.")
    gpu: str | None = Field(
        default=None, max_length=64, description="GPU class, such as l4 or h100; unset takes any."
    )
    memory_mib: int | None = Field(
        default=None, ge=64, le=1 << 24, description="Host memory a replica; unset is estimated."
    )

    @model_validator(mode="after")
    def _class_of_something(self) -> Self:
        if self.gpu is not None and self.gpus == 0:
            raise ValueError(f"gpu is {self.gpu}, and gpus is 0: a replica would run on the CPU")
        return self


class ScheduledReplicas(Contract):
    """Replicas that are kept for a while at certain times."""

    cron: str = Field(
        max_length=200, description="When it begins: minute, hour, day, month, day of the week."
    )
    timezone: str = Field(
        default="UTC", max_length=64, description="Whose time `cron` tells, as Europe/Berlin."
    )
    duration: Annotated[float, Field(gt=0, le=366 * 24 * 3600, strict=False)] = Field(
        description="Seconds that it lasts."
    )
    replicas: int = Field(
        default=1, ge=1, le=1000, description="Replicas kept meanwhile, started ahead."
    )


class Scaling(Contract):
    """How many replicas, when, and how far up the ladder spare ones wait."""

    min: int = Field(default=0, ge=0, le=1000, description="Replicas kept even when idle.")
    max: int = Field(default=1, ge=1, le=1000, description="Replicas at most.")
    target_concurrency: float = Field(
        default=8, gt=0, le=10_000, description="In-flight requests a replica should carry."
    )
    grace: SecondsOrAuto = Field(
        default=None,
        description="Idle seconds before the last replica stops; auto is the break-even time.",
        json_schema_extra={"default": AUTO},
    )
    cold_penalty: Seconds = Field(
        default=60,
        description="Idle seconds that sparing a request a cold start is worth, beside its own.",
    )
    schedule: Annotated[tuple[ScheduledReplicas, ...], BeforeValidator(_tuple_of_list)] = Field(
        default=(), max_length=32, description="Replicas kept at certain times."
    )
    sleep: Seconds = Field(
        default=600,
        description="Seconds a stopped replica's process keeps the model, to wake sooner; 0: none.",
    )
    standby: int = Field(
        default=1, ge=0, le=100, description="Standby workers kept on the runtime rung."
    )

    @model_validator(mode="after")
    def _within_the_maximum(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        most = max((entry.replicas for entry in self.schedule), default=0)
        if most > self.max:
            raise ValueError(f"schedule asks for {most} replicas, max is {self.max}")
        return self


class Limits(Contract):
    """What one model accepts before it says no."""

    max_queue: int = Field(default=1000, ge=0, le=100_000, description="Requests held at most.")
    max_queue_bytes: int = Field(
        default=64 << 20, ge=1024, le=1 << 32, description="Bytes of held requests at most."
    )
    max_body_bytes: int = Field(
        default=4 << 20, ge=1024, le=64 << 20, description="Bytes of one request body at most."
    )
    max_concurrency: int = Field(
        default=32, ge=1, le=10_000, description="In-flight requests one replica may have."
    )
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=1 << 20, description="Cap on a request's max_tokens."
    )


class Timeouts(Contract):
    """Seconds a request may spend; waiting for a cold start is counted apart from execution."""

    cold_start: Seconds = Field(default=300, description="Waiting while no replica is ready.")
    queue: Seconds = Field(default=60, description="Waiting for a permit on a ready replica.")
    execution: Seconds = Field(default=600, description="From dispatch to the last byte.")


class ModelSpec(Contract):
    """What the user wrote: one model."""

    name: Annotated[ModelName, StringConstraints(pattern=MODEL_NAME_PATTERN)] = Field(
        description="Lower-case letters, digits and hyphens; at most 63 characters."
    )
    source: str = Field(
        max_length=4096,
        description=(
            "file:///dir, hf://org/repo@revision, s3://bucket/prefix or oci://host/repository:tag."
        ),
    )
    image: str | None = Field(
        default=None,
        max_length=MOST_IMAGE_CHARACTERS,
        description="host/repository:tag that its containers run; unset takes the platform's.",
    )
    shared: bool = Field(
        default=False, description="Other tenants may call it; only its own may see more of it."
    )
    engine: EngineSettings = EngineSettings()
    resources: Resources = Resources()
    scaling: Scaling = Scaling()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _one_gpu_a_process(self) -> Self:
        gpus, parts = self.resources.gpus, self.engine.tensor_parallel
        if gpus not in (0, parts):
            raise ValueError(f"resources.gpus ({gpus}) is not engine.tensor_parallel ({parts})")
        return self

    @field_validator("source")
    @classmethod
    def _known_scheme(cls, source: str) -> str:
        return checked_source(source)

    @field_validator("image")
    @classmethod
    def _names_a_registry(cls, image: str | None) -> str | None:
        return None if image is None else checked_image(image)
