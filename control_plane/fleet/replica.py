"""One replica as the fleet knows it: a frozen value and the table of its legal moves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from control_plane.fleet.need import need_of
from control_plane.fleet.provision import Provision
from infra.contracts.base import ModelName, NodeId, ReplicaId, RevisionName
from infra.contracts.node import Failure, ReplicaAssignment, ReplicaReport
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import Rung, Stage, StageProgress, StageTiming

_ENDS = frozenset({ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.LOST})

MOVES: Mapping[ReplicaState, frozenset[ReplicaState]] = MappingProxyType(
    {
        ReplicaState.ASSIGNED: frozenset(
            {
                ReplicaState.STARTING,  # its node took it
                ReplicaState.READY,  # it climbed between two reports
                *_ENDS,  # taken back, could not start, node gone
            }
        ),
        ReplicaState.STARTING: frozenset(
            {
                ReplicaState.READY,  # it reached the top rung
                *_ENDS,  # taken back, could not start, node gone
            }
        ),
        ReplicaState.READY: frozenset(
            {
                ReplicaState.DRAINING,  # no longer wanted: finish and exit
                *_ENDS,  # exited by itself, crashed, node gone
            }
        ),
        ReplicaState.DRAINING: frozenset(_ENDS),  # finished, crashed, node gone
        ReplicaState.STOPPED: frozenset(),
        ReplicaState.FAILED: frozenset(),
        ReplicaState.LOST: frozenset(),
    }
)


class IllegalMove(Exception):
    """A replica was asked to make a move that its table does not have."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a READY replica answers, and how much it may be given at once."""

    replica_id: ReplicaId
    node_id: NodeId
    revision: RevisionName
    host: str
    port: int
    token: str
    max_concurrency: int


@dataclass(frozen=True, slots=True)
class Climb:
    """The replica of a revision that is furthest on its way to READY."""

    replica_id: ReplicaId
    state: ReplicaState
    progress: StageProgress | None
    starting: int


@dataclass(frozen=True, slots=True)
class Replica:
    """A copy of a revision on a node, from the wish for it to its end.

    `wanted_at` is when the need arose, `created_at` when a node was told; between the two lies
    the wait for a machine. `history` holds the stages of failed attempts that it replaces.
    """

    replica_id: ReplicaId
    revision: Revision
    node_id: NodeId
    token: str
    wanted_at: float
    created_at: float
    since: float
    state: ReplicaState = ReplicaState.ASSIGNED
    drain_deadline_s: float = 30.0
    from_rung: Rung = Rung.NODE
    host: str | None = None
    port: int | None = None
    stages: tuple[StageTiming, ...] = ()
    history: tuple[StageTiming, ...] = ()
    progress: StageProgress | None = None
    progressed_at: float = 0.0
    ready_at: float | None = None
    failure: Failure | None = None
    detail: str | None = None
    is_adopted: bool = False
    provision: Provision | None = None  # of its node's machine

    @property
    def model(self) -> ModelName:
        return self.revision.model

    @property
    def is_over(self) -> bool:
        return self.state in _ENDS

    @property
    def is_loading(self) -> bool:
        return self.state in {ReplicaState.ASSIGNED, ReplicaState.STARTING}

    @property
    def is_serving_or_loading(self) -> bool:
        """Counts towards the desired number; a draining one does not."""
        return self.is_loading or self.state is ReplicaState.READY

    def to(self, state: ReplicaState, *, now: float, detail: str | None = None) -> "Replica":
        """This replica after a move; raises IllegalMove where the table has none."""
        if state not in MOVES[self.state]:
            raise IllegalMove(f"{self.replica_id}: {self.state} -> {state}")
        ready_at = now if state is ReplicaState.READY else self.ready_at
        return replace(
            self, state=state, since=now, ready_at=ready_at, detail=detail or self.detail
        )

    def heard(self, report: ReplicaReport, *, now: float) -> "Replica":
        """This replica after news from its node.

        News may be late or repeated: what would move it backwards changes its facts at most,
        never its state, and nothing changes after its end.
        """
        if self.is_over:
            return self
        changed = replace(
            self,
            from_rung=report.from_rung,
            host=report.host or self.host,
            port=report.port or self.port,
            stages=report.stages if len(report.stages) >= len(self.stages) else self.stages,
            progress=report.progress,
            progressed_at=now if _has_progressed(self, report) else self.progressed_at,
            failure=report.failure or self.failure,
        )
        if report.state not in MOVES[self.state]:
            return changed
        if report.state is ReplicaState.READY and (changed.host is None or changed.port is None):
            return changed  # nobody could reach it
        detail = report.failure.detail if report.failure is not None else None
        return changed.to(report.state, now=now, detail=detail)

    def endpoint(self) -> Endpoint | None:
        """Where to reach it, while it is READY."""
        if self.state is not ReplicaState.READY or self.host is None or self.port is None:
            return None
        return Endpoint(
            self.replica_id,
            self.node_id,
            self.revision.name,
            self.host,
            self.port,
            self.token,
            self.revision.spec.limits.max_concurrency,
        )

    def assignment(self, image: str | None = None) -> ReplicaAssignment:
        """What its node is told; `image` is what it runs there."""
        desired: Literal["run", "drain"] = "drain" if self.state is ReplicaState.DRAINING else "run"
        return ReplicaAssignment(
            replica_id=self.replica_id,
            model=self.revision.model,
            revision=self.revision.name,
            desired=desired,
            drain_deadline_s=self.drain_deadline_s,
            source=self.revision.source,
            draft_source=self.revision.draft_source,
            image=image,
            engine=self.revision.spec.engine,
            resources=self.revision.spec.resources,
            gpu_memory_bytes=need_of(self.revision).gpus.memory_bytes,
            max_concurrency=self.revision.spec.limits.max_concurrency,
            max_output_tokens=self.revision.spec.limits.max_output_tokens,
            sleep_s=self.revision.spec.scaling.sleep,
            token=self.token,
        )

    def timings(self) -> tuple[StageTiming, ...]:
        """Every measured stage of its climb, failed attempts before it first.

        Provision runs from the wish for the replica to the first thing its node did.
        """
        begun_at = min(
            (timing.started_at for timing in self.stages),
            default=self.since if self.is_over else None,
        )
        if begun_at is None:
            return self.history
        steps = self.provision
        provision = StageTiming(
            stage=Stage.PROVISION,
            started_at=self.wanted_at,
            seconds=max(0.0, begun_at - self.wanted_at),
            source="node",
            parts=() if steps is None else steps.parts(self.wanted_at, begun_at),
        )
        return (*self.history, provision, *self.stages)

    def legacy(self) -> tuple[StageTiming, ...]:
        """The timings of a climb cut short, for the history of the replica that replaces it."""
        timings = self.timings()
        last_end = max((timing.ended_at for timing in timings), default=self.wanted_at)
        if self.since <= last_end:
            return timings
        stage = self.progress.stage if self.progress is not None else Stage.PROVISION
        cut = StageTiming(
            stage=stage,
            started_at=last_end,
            seconds=self.since - last_end,
            source=f"{self.replica_id} {self.state}",
        )
        return (*timings, cut)


def _has_progressed(replica: Replica, report: ReplicaReport) -> bool:
    return (
        report.progress != replica.progress
        or len(report.stages) > len(replica.stages)
        or report.state is not replica.state
    )
