"""What the program that indexes an image says while it does, a JSON line each."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from infra.contracts.base import Contract
from infra.contracts.image import DIGEST_PATTERN


class IndexProgress(Contract):
    """It has come so far."""

    kind: Literal["progress"] = "progress"
    fraction: float = Field(ge=0, le=1)


class ImageIndexed(Contract):
    """The index is beside the image, made now or before; the last line."""

    kind: Literal["indexed"] = "indexed"
    index: str | None = Field(
        pattern=DIGEST_PATTERN, description="Its digest; null: no layer has one."
    )
    layers: int = Field(ge=0, description="Layers of the image.")
    lazy: int = Field(ge=0, description="Those that have an index.")
    why_not: str | None = Field(
        default=None, max_length=1000, description="Why one of the others, not small, has none."
    )


class IndexFailed(Contract):
    """The index cannot be made; the last line."""

    kind: Literal["failed"] = "failed"
    code: str = Field(max_length=64, description="A slug of infra.errors.")
    detail: str = Field(max_length=4000, description="Why.")
    hint: str | None = Field(default=None, max_length=1000, description="What can be done.")


IndexLine = Annotated[IndexProgress | ImageIndexed | IndexFailed, Field(discriminator="kind")]

index_line: TypeAdapter[IndexLine] = TypeAdapter(IndexLine)
