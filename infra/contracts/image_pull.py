"""What is said between who wants an image and who pulls it: JSON, a line each."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from infra.contracts.base import Contract
from infra.contracts.image import DIGEST_PATTERN


class PullOrder(Contract):
    """What a snapshotter is asked for on its socket; PullLines are the answer."""

    reference: str = Field(max_length=1024, description="registry/repository[:tag][@digest].")
    containerd: Path = Field(description="The socket of the containerd to pull it into.")
    namespace: str = Field(max_length=76, description="Of containerd's.")
    snapshotter: str = Field(max_length=64, description="Its name in containerd's configuration.")
    index: str | None = Field(
        default=None,
        pattern=DIGEST_PATTERN,
        description="The only index by which layers may be mounted; unset: whichever lies beside.",
    )


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


class PullFailed(Contract):
    """The image cannot be had; the last line where it comes."""

    kind: Literal["failed"] = "failed"
    detail: str = Field(max_length=4000, description="Why.")


PullLine = Annotated[PullProgress | Pulled | PullFailed, Field(discriminator="kind")]

pull_line: TypeAdapter[PullLine] = TypeAdapter(PullLine)
