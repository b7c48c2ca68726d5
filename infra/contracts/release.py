"""How a model's requests are split between its revisions, and how that is changed."""

from typing import Annotated

from pydantic import Field, StringConstraints

from infra.contracts.base import Contract, ModelName, RevisionName
from infra.contracts.image import ImageStatus

Generation = Annotated[
    int | None,
    Field(
        ge=0,
        description="If given, the change is made only where this is still the generation.",
    ),
]
NamedRevision = Annotated[RevisionName, StringConstraints(max_length=128)]


class TrafficShare(Contract):
    """So many of a hundred requests go to a revision."""

    revision: RevisionName
    percent: int = Field(ge=1, le=100)


class TrafficStatus(Contract):
    """`GET /v1/models/{name}/traffic`."""

    name: ModelName
    generation: int = Field(description="Grows with every change of the model.")
    traffic: tuple[TrafficShare, ...] = Field(description="The largest share first.")


class NewTraffic(Contract):
    """What `platform traffic` asks for."""

    traffic: dict[NamedRevision, Annotated[int, Field(strict=True, ge=0, le=100)]] = Field(
        min_length=1, max_length=100, description="Percents that add up to 100; others get none."
    )
    generation: Generation = None


class Rollback(Contract):
    """What `platform rollback` asks for."""

    revision: NamedRevision | None = Field(
        default=None, description="Unset takes the one that last had all requests."
    )
    generation: Generation = None


class LockedFile(Contract):
    """One file of a revision as it was when it was deployed; others are not served."""

    path: str
    size: int
    digest: str | None = Field(
        description="sha256, git-sha1, md5, or etag where there is no better."
    )


class RevisionStatus(Contract):
    """A revision that is kept; any of them can get requests again."""

    revision: RevisionName
    percent: int = Field(description="Of the model's requests; 0 if it is out of traffic.")
    is_previous: bool = Field(description="A rollback without a name goes there.")
    source: str = Field(description="Its source, pinned.")
    digest: str
    files: tuple[LockedFile, ...] = Field(
        default=(), description="What replicas refuse to differ from."
    )
    image: ImageStatus | None = Field(
        default=None, description="What its containers run, where that is pinned."
    )
    created_at: float
    replicas: int = Field(description="Ready ones.")
    in_flight: int
    waiting: int
    requests: int = Field(description="That ended since it is in traffic, in this process.")
    failed: int = Field(description="Of those, answered with a status from 500 on.")
