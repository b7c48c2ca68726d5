"""Stages of a cold start, their timings, and the report that adds them up."""

from enum import StrEnum

from pydantic import Field

from infra.contracts.base import Contract, ModelName, NodeId, ReplicaId, RequestId, RevisionName


class Rung(StrEnum):
    """A step of the readiness ladder, cheapest first."""

    OFF = "off"
    STOPPED = "stopped"
    NODE = "node"
    IMAGE = "image"
    RUNTIME = "runtime"
    WEIGHTS = "weights"
    READY = "ready"


class Stage(StrEnum):
    """A named part of a cold start, in the order of the climb."""

    QUEUE = "queue"
    PROVISION = "provision"
    IMAGE = "image"
    RUNTIME = "runtime"
    WEIGHTS = "weights"
    ENGINE = "engine"
    PREFILL = "prefill"


# Sources whose bytes are used where they are: a rate would say nothing.
IN_PLACE = frozenset({"asleep", "cache", "mmap", "packed"})


class StagePart(Contract):
    """One of the things a stage did, in order; together they may be a little less than it."""

    name: str = Field(max_length=64)
    seconds: float = Field(ge=0)


class Came(Contract):
    """Bytes of one source."""

    source: str = Field(max_length=64, description="cache, peer, origin.")
    bytes: int = Field(ge=0)


class Moved(Contract):
    """Bytes that came while stages went on, by where they came from."""

    came: tuple[Came, ...] = Field(default=(), max_length=16, description="Most bytes first.")
    seconds: float = Field(ge=0, description="In which any of them were on their way.")


class StageTiming(Contract):
    """One measured interval of one stage, in the control plane's clock (unix seconds)."""

    stage: Stage
    started_at: float
    seconds: float = Field(ge=0)
    bytes: int | None = None
    source: str | None = Field(
        default=None, description="Where it came from: fork, mmap, cache, peer, s3, hub …"
    )
    parts: tuple[StagePart, ...] = ()
    moved: Moved | None = Field(
        default=None,
        description="What `bytes` consists of, where some came while later stages went on.",
    )

    @property
    def ended_at(self) -> float:
        return self.started_at + self.seconds

    @property
    def bytes_per_s(self) -> float | None:
        """How fast bytes came; None where none moved."""
        if self.moved is not None:
            seconds = self.moved.seconds
            size = sum(it.bytes for it in self.moved.came if it.source not in IN_PLACE)
        else:
            seconds = self.seconds
            size = 0 if self.source in IN_PLACE else self.bytes or 0
        return size / seconds if size and seconds else None


class StageProgress(Contract):
    """How far the stage a replica is in has come."""

    stage: Stage
    fraction: float = Field(ge=0, le=1)


class StageShare(Contract):
    """The part of one request's wait that one stage explains."""

    stage: Stage
    offset_s: float = Field(description="Seconds after the request arrived.")
    seconds: float
    bytes: int | None = None
    bytes_per_s: float | None = Field(
        default=None,
        description="Over the whole stage, or the time in which bytes were on their way where they "
        "came while later stages went on; null where none moved.",
    )
    source: str | None = None
    came: tuple[Came, ...] = Field(
        default=(), description="What `bytes` consists of, where more than one source is known."
    )
    parts: tuple[StagePart, ...] = Field(
        default=(), description="What the stage did, where all of it falls into the wait."
    )


class ColdStartReport(Contract):
    """Where the time to first token of one request that waited went.

    Conservation law: the shares and `unattributed_s` add up to `ttft_s`.
    """

    request_id: RequestId
    model: ModelName
    revision: RevisionName
    replica_id: ReplicaId
    node_id: NodeId
    from_rung: Rung = Field(description="The rung the climb started from.")
    started_at: float = Field(description="Unix seconds at which the request arrived.")
    ttft_s: float
    shares: tuple[StageShare, ...]
    unattributed_s: float
    clock_uncertainty_s: float = Field(
        description="How far the clocks of gateway and node may differ."
    )

    def stage_seconds(self) -> dict[Stage, float]:
        """Seconds a stage, in the order of the climb; stages that took no part are left out."""
        totals: dict[Stage, float] = {}
        for share in self.shares:
            totals[share.stage] = totals.get(share.stage, 0.0) + share.seconds
        return {stage: totals[stage] for stage in Stage if stage in totals}
