"""The image that a model's containers run: what it is called, and what is pinned of it."""

import re
from enum import StrEnum
from typing import Final

from pydantic import Field

from infra.contracts.base import Contract

IMAGE_PATTERN: Final = re.compile(
    r"(?P<host>[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?)"
    r"/(?P<repository>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
MOST_IMAGE_CHARACTERS: Final = 512
DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"


def checked_image(image: str) -> str:
    """The reference itself; raises ValueError for what no image is written like."""
    match = IMAGE_PATTERN.fullmatch(image) if len(image) <= MOST_IMAGE_CHARACTERS else None
    host = "" if match is None else match["host"]
    if not ("." in host or ":" in host or host == "localhost"):
        raise ValueError("is not host[:port]/repository[:tag] or host[:port]/repository@sha256:…")
    return image


class ResolvedImage(Contract):
    """An image whose content can no longer change under us."""

    reference: str = Field(
        max_length=1024, description="host[:port]/repository@sha256:…, of what the tag then meant."
    )
    is_asked_for: bool = Field(
        default=True, description="The model names it; else it is what the platform runs anyway."
    )

    @property
    def digest(self) -> str:
        return self.reference.rpartition("@")[2]


class ImagePool(Contract):
    """Standby workers of one image, on one node."""

    image: str = Field(max_length=1024, description="As ResolvedImage.reference.")
    workers: int = Field(ge=0, le=1000)


class ImagePin(Contract):
    """The only index by which layers of an image may be mounted."""

    image: str = Field(max_length=1024, description="As ResolvedImage.reference.")
    index: str = Field(pattern=DIGEST_PATTERN, description="Its digest.")


class ImageState(StrEnum):
    """How a node gets the layers of an image that it does not have."""

    WAITING = "waiting"
    INDEXING = "indexing"
    LAZY = "lazy"
    WHOLE = "whole"
    UNKNOWN = "unknown"


class ImageStatus(Contract):
    """The image of a revision, as a user sees it."""

    reference: str = Field(description="As it is pinned.")
    state: ImageState = Field(
        description="lazy: layers are mounted; whole: downloaded. While an index is made (waiting, "
        "indexing) starts download it, too; unknown: indexes are not made here."
    )
    fraction: float | None = Field(default=None, description="How far the index has come.")
    detail: str = Field(description="The same in a line, and why.")
    hint: str | None = Field(default=None, description="What to do where it could not be made.")
