"""What a program that pulls an image says of it: JSON, a line each."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from infra.contracts.base import Contract


class PullProgress(Contract):
    """It has come so far."""

    kind: Literal["progress"] = "progress"
    fraction: float = Field(ge=0, le=1)


class Pulled(Contract):
    """The image can be started."""

    kind: Literal["pulled"] = "pulled"
    digest: str = Field(max_length=200, description="Of its manifest.")
    bytes: int = Field(ge=0, description="That had to be here first.")
    source: str = Field(max_length=64, description="Where they came from: origin, peer, cache.")


PullLine = Annotated[PullProgress | Pulled, Field(discriminator="kind")]

pull_line: TypeAdapter[PullLine] = TypeAdapter(PullLine)
