"""A revision: an immutable spec with everything pinned."""

from enum import StrEnum

from pydantic import Field

from infra.contracts.base import Contract, ModelName, NodeId, ReplicaId, RevisionName
from infra.contracts.image import ImageStatus, ResolvedImage
from infra.contracts.model_spec import ModelSpec
from infra.contracts.release import TrafficShare
from infra.contracts.stage import StageProgress
from infra.contracts.tenancy import DEFAULT_TENANT, Tenant


class SourceFile(Contract):
    """One file of a resolved source."""

    path: str = Field(description="Relative to the source's root, with forward slashes.")
    size: int = Field(ge=0)
    digest: str | None = Field(
        default=None,
        description="sha256:<hex>, git-sha1:<hex>, md5:<hex> or etag:<value>: the source's best.",
    )
    etag: str | None = Field(
        default=None, description="What an object store calls this content; asked for with it."
    )
    version: str | None = Field(
        default=None, description="The object's version, where its store keeps versions."
    )
    modified_ns: int | None = Field(
        default=None,
        description="Of a local file: when it changed last; if equal it need not be read again.",
    )


class ResolvedSource(Contract):
    """A source whose content can no longer change under us."""

    uri: str = Field(description="The source with its revision pinned.")
    digest: str = Field(description="sha256:<hex> over the pinned content's identity.")
    files: tuple[SourceFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


class ModelFacts(Contract):
    """What the control plane needs to know of a model without touching a tensor."""

    architecture: str
    context_tokens: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    weight_bytes: int = Field(ge=0)
    hidden_size: int | None = Field(
        default=None, ge=1, description="Numbers of a token's state, where config.json says it."
    )
    longest_token_bytes: int = Field(
        ge=1, description="No token spells more bytes: a lower bound of a prompt's tokens."
    )
    splits_words: bool = Field(
        default=False,
        description="No token reaches from one word into the next: words are a lower bound, too.",
    )


class Revision(Contract):
    """`name@3`: deploying an equal spec of equal content gives the same revision."""

    name: RevisionName
    model: ModelName
    number: int = Field(ge=1)
    tenant: Tenant = Field(default=DEFAULT_TENANT, description="Whose model it is.")
    spec: ModelSpec
    source: ResolvedSource
    draft_source: ResolvedSource | None = Field(
        default=None, description="The draft model's, where one makes guesses."
    )
    image: ResolvedImage | None = Field(
        default=None, description="What its containers run; unset: what each node runs."
    )
    facts: ModelFacts
    digest: str = Field(description="sha256:<hex> over spec, the sources' digests and the image.")
    created_at: float


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    ASSIGNED = "assigned"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"


class ReplicaStatus(Contract):
    """One replica as a user sees it."""

    replica_id: ReplicaId
    node_id: NodeId
    revision: RevisionName
    state: ReplicaState
    since: float
    progress: StageProgress | None = None
    in_flight: int = 0
    detail: str | None = None


class ModelState(StrEnum):
    """One word for `platform ls`."""

    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILING = "failing"


class ModelStatus(Contract):
    """One deployed model as `GET /v1/models/{name}` shows it."""

    name: ModelName
    state: ModelState
    revision: RevisionName
    spec: ModelSpec
    facts: ModelFacts
    digest: str
    image: ImageStatus | None = Field(
        default=None, description="What its containers run, where that is pinned."
    )
    url: str
    created_at: float
    desired_replicas: int
    reason: str = Field(description="Why it is where it is, in a line.")
    hint: str | None = Field(default=None, description="What to do where its replicas failed.")
    in_flight: int
    waiting: int
    traffic: tuple[TrafficShare, ...] = Field(description="The largest share first.")
    replicas: tuple[ReplicaStatus, ...]
