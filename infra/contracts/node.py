"""What a node agent and the control plane tell each other; the agent always dials."""

from typing import Literal

from pydantic import Field

from infra.contracts.base import (
    Contract,
    GpuId,
    ModelName,
    NodeId,
    ReplicaId,
    RevisionName,
)
from infra.contracts.image import ImagePin, ImagePool
from infra.contracts.model_spec import EngineSettings, Resources
from infra.contracts.revision import ReplicaState, ResolvedSource
from infra.contracts.stage import Rung, StageProgress, StageTiming

Runtime = Literal["process", "container"]
Recipe = tuple[str, str | None, str | None, EngineSettings, Resources]


class ClockReading(Contract):
    """One reading of a process's clocks, to relate two processes' time."""

    wall: float = Field(description="Unix seconds, as this process reckons them.")
    monotonic: float = Field(description="CLOCK_MONOTONIC seconds at the same instant.")
    boot_id: str = Field(description="Equal on both sides where CLOCK_MONOTONIC is shared.")


class Failure(Contract):
    """Why a replica ended."""

    code: str = Field(description="A slug of infra.errors.")
    detail: str
    is_permanent: bool = Field(description="Starting it again would fail the same way.")
    hint: str | None = Field(default=None, description="What somebody can do about it.")


class ReplicaAssignment(Contract):
    """One replica a node should have; a replica missing from the desired state is killed."""

    replica_id: ReplicaId
    model: ModelName
    revision: RevisionName
    desired: Literal["run", "drain"]
    drain_deadline_s: float = 30
    source: ResolvedSource
    draft_source: ResolvedSource | None = None
    image: str | None = Field(
        default=None, description="What its container runs, pinned; unset: what the node runs."
    )
    engine: EngineSettings
    resources: Resources
    gpu_memory_bytes: int = Field(default=0, ge=0, description="Of each of its GPUs, at least.")
    max_concurrency: int
    max_output_tokens: int | None = None
    sleep_s: float = Field(
        default=0, ge=0, description="How long its process may sleep once it has drained."
    )
    token: str = Field(repr=False, description="Bearer token the replica asks of its callers.")

    @property
    def recipe(self) -> Recipe:
        """What its process holds once it has climbed; where equal, one may wake as the other."""
        draft_digest = None if self.draft_source is None else self.draft_source.digest
        return self.source.digest, draft_digest, self.image, self.engine, self.resources


class SleepTerms(Contract):
    """Who may sleep on a node: workers that keep the model of a replica that has drained."""

    revisions: tuple[RevisionName, ...] = ()
    most: int = Field(default=0, ge=0, description="Sleepers at most.")
    memory_bytes: int = Field(default=0, ge=0, description="What they may hold together.")


class Sleeper(Contract):
    """A worker on the weights rung: it holds the model of a replica that drained."""

    revision: RevisionName
    memory_bytes: int = Field(ge=0, description="What its end gives back: all but pages of files.")
    since: float
    until: float


class DesiredState(Contract):
    """What a node should look like; `version` grows with every change."""

    version: int
    standby: int = Field(ge=0, description="Standby workers to keep on the runtime rung.")
    pools: tuple[ImagePool, ...] = Field(
        default=(), description="Beside those, of other images than the node's own."
    )
    replicas: tuple[ReplicaAssignment, ...]
    pins: tuple[ImagePin, ...] = Field(
        default=(), description="Indexes of images above; of others, whichever lies beside them."
    )
    prepare: tuple[ResolvedSource, ...] = Field(
        default=(),
        description="Likely to be started next: standby workers read what is small of them.",
    )
    sleep: SleepTerms = SleepTerms()


class ReplicaReport(Contract):
    """What a node says of one replica; the whole truth of it, so a repeat does no harm."""

    replica_id: ReplicaId
    revision: RevisionName
    state: ReplicaState
    from_rung: Rung = Field(description="The rung its process waited on when it was claimed.")
    host: str | None = None
    port: int | None = None
    stages: tuple[StageTiming, ...] = ()
    progress: StageProgress | None = None
    failure: Failure | None = None


class LogLine(Contract):
    """One line of a replica's log."""

    at: float
    replica_id: ReplicaId
    revision: RevisionName
    text: str = Field(max_length=8192)


class Gpu(Contract):
    """One GPU of a node, or one part of a GPU that is divided (MIG)."""

    gpu_id: GpuId = Field(description="As CUDA_VISIBLE_DEVICES names it: GPU-<uuid>, MIG-<uuid>.")
    kind: str = Field(description="Its class, as `resources.gpu` names it.")
    name: str = Field(description="What its driver calls it.")
    memory_bytes: int = Field(ge=0)
    used_bytes: int = Field(default=0, ge=0, description="By whomsoever.")
    driver: str
    replica_id: ReplicaId | None = Field(default=None, description="Whose process owns it.")
    sleeper: RevisionName | None = Field(
        default=None, description="Or: whose sleeping process owns it, and gives way."
    )
    trouble: str | None = Field(default=None, description="Why nobody is given it.")
    is_lost: bool = Field(default=False, description="What ran on it cannot go on, either.")

    @property
    def is_part(self) -> bool:
        return self.gpu_id.startswith("MIG-")


class NodeRegistration(Contract):
    """A node introduces itself, with what already runs on it."""

    node_id: NodeId
    cpus: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)
    gpus: tuple[Gpu, ...] = ()
    host: str | None = Field(
        default=None,
        max_length=255,
        description="Where its replicas listen; unset: where it reaches the control plane from.",
    )
    clock: ClockReading
    started_at: float = Field(description="When the agent's process began, by `clock.wall`.")
    asked_at: float | None = Field(
        default=None, description="When its cloud was asked for the machine, by the cloud's clock."
    )
    runtime: Runtime = Field(default="process", description="What its workers run as.")
    replicas: tuple[ReplicaReport, ...] = ()


class NodeLease(Contract):
    """The answer to a registration: the node is ours until the lease runs out."""

    node_id: NodeId
    lease_s: float
    clock: ClockReading


class Leaving(Contract):
    """A node will be taken away: nothing new should start there, and what runs should drain."""

    reason: str = Field(max_length=200)
    at: float | None = Field(default=None, description="Unix seconds; unset: not known when.")


class NodeReport(Contract):
    """News from a node; any report renews its lease."""

    node_id: NodeId
    standby_ready: int = Field(ge=0)
    pools_ready: tuple[ImagePool, ...] = Field(
        default=(), description="Beside those, parked workers of other images."
    )
    clock_uncertainty_s: float = Field(default=0, ge=0)
    sleepers: tuple[Sleeper, ...] = ()
    gpus: tuple[Gpu, ...] | None = Field(default=None, description="Unset: as they were.")
    replicas: tuple[ReplicaReport, ...] = ()
    logs: tuple[LogLine, ...] = ()
    leaving: Leaving | None = Field(default=None, description="Its machine will be taken away.")
    is_leaving: bool = False  # the last report: its agent ends, and all its replicas with it


class NodeStatus(Contract):
    """One registered node as `GET /v1/nodes` shows it."""

    node_id: NodeId
    cpus: int
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    started_at: float
    runtime: Runtime = "process"
    standby: int = Field(description="Standby workers it should keep, of all images.")
    standby_reason: str = Field(default="", description="Why so many.")
    standby_ready: int = Field(description="Standby workers that wait on the runtime rung.")
    sleepers: tuple[Sleeper, ...] = Field(description="Workers that wait on the weights rung.")
    replicas: tuple[ReplicaId, ...]
    leaving: Leaving | None = Field(
        default=None,
        description="Its machine will be taken away, so nothing new starts there; unset: it stays.",
    )
