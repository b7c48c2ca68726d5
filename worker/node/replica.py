"""One replica as its node knows it: a frozen value, and the report it makes."""

from dataclasses import dataclass, replace

from infra.contracts.node import Failure, ReplicaAssignment, ReplicaReport
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Moved, Rung, Stage, StageProgress, StageTiming
from infra.contracts.worker_link import (
    Asleep,
    Failed,
    FromWorker,
    Hello,
    ImageRead,
    Progress,
    Ready,
    StageDone,
)
from infra.errors import ReplicaFailed, ReplicaLost
from worker.node.image_stage import with_image_read
from worker.node.plan import WorkerId

ENDS = frozenset({ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.LOST})


@dataclass(frozen=True, slots=True)
class Replica:
    """From the assignment's receipt to its end, in the control plane's clock.

    `rung` and `runtime_source` say what its process was when it was claimed. `is_unwanted`: we
    asked the process to die, so its death is no failure.
    """

    assignment: ReplicaAssignment
    received_at: float
    state: ReplicaState = ReplicaState.ASSIGNED
    worker_id: WorkerId | None = None
    launches: int = 0
    rung: Rung = Rung.NODE
    runtime_source: str = "spawn"
    host: str | None = None
    port: int | None = None
    stages: tuple[StageTiming, ...] = ()
    image_read: Moved | None = None
    progress: StageProgress | None = None
    failure: Failure | None = None
    is_unwanted: bool = False

    @property
    def is_climbing(self) -> bool:
        return self.state in {ReplicaState.ASSIGNED, ReplicaState.STARTING}

    @property
    def has_ended(self) -> bool:
        return self.state in ENDS

    def claimed(self, worker_id: WorkerId, rung: Rung, runtime_source: str) -> "Replica":
        """It has a process, or the promise of one."""
        return replace(
            self,
            state=ReplicaState.STARTING,
            worker_id=worker_id,
            launches=self.launches + 1,
            rung=rung,
            runtime_source=runtime_source,
            progress=StageProgress(stage=Stage.RUNTIME, fraction=0),
        )

    def unclaimed(self) -> "Replica":
        """Its process came to nothing before it was told to start."""
        return replace(self, state=ReplicaState.ASSIGNED, worker_id=None)

    def heard(self, message: FromWorker) -> "Replica":
        """After a word of its process; words that come too late change nothing."""
        if self.has_ended:
            return self
        match message:
            case Hello():
                return self
            case Progress(progress=progress):
                return replace(self, progress=progress) if self.is_climbing else self
            case StageDone(timing=timing):
                return replace(self, stages=(*self.stages, self._from_receipt(timing)))
            case ImageRead(read=read):  # who was parked had read it before there was a replica
                is_whole = self.rung not in {Rung.RUNTIME, Rung.WEIGHTS}
                return replace(self, image_read=read) if is_whole else self
            case Ready(host=host, port=port):
                if not self.is_climbing:
                    return self
                return replace(self, state=ReplicaState.READY, host=host, port=port, progress=None)
            case Failed(failure=failure):
                return self.failed(failure)
            case Asleep():  # it has drained, and its process is no longer its own
                return replace(self.stopped(), worker_id=None)

    def draining(self) -> "Replica":
        return replace(self, state=ReplicaState.DRAINING)

    def unwanted(self) -> "Replica":
        """Its process was asked to die."""
        return replace(self, is_unwanted=True)

    def stopped(self) -> "Replica":
        return replace(self, state=ReplicaState.STOPPED, progress=None)

    def failed(self, failure: Failure) -> "Replica":
        """FAILED while it climbs, LOST once it served."""
        state = ReplicaState.FAILED if self.is_climbing else ReplicaState.LOST
        return replace(self, state=state, failure=failure, progress=self.progress)

    def process_ended(self, *, is_clean: bool, detail: str, code: str | None = None) -> "Replica":
        """After its process is gone: the last move, unless it was made before.

        `code` is the slug of a better-fitting error than that it failed or was lost.
        """
        gone = replace(self, worker_id=None)
        if self.has_ended:
            return gone
        if self.is_unwanted or (is_clean and self.state is ReplicaState.DRAINING):
            return gone.stopped()
        return gone.lost(detail, code)

    def lost(self, detail: str, code: str | None = None) -> "Replica":
        """Something took it away, in the middle of whatever it did."""
        if code is None:
            code = (ReplicaFailed if self.is_climbing else ReplicaLost).slug
        return self.failed(Failure(code=code, detail=detail, is_permanent=False))

    def report(self) -> ReplicaReport:
        """The whole truth of it."""
        state = ReplicaState.STARTING if self.state is ReplicaState.ASSIGNED else self.state
        return ReplicaReport(
            replica_id=self.assignment.replica_id,
            revision=self.assignment.revision,
            state=state,
            from_rung=self.rung,
            host=self.host,
            port=self.port,
            stages=with_image_read(self.stages, self.image_read, began_at=self.received_at),
            progress=self.progress,
            failure=self.failure,
        )

    def facts(self) -> dict[str, object]:
        """What a log line says of it."""
        facts: dict[str, object] = {
            "replica": self.assignment.replica_id,
            "revision": self.assignment.revision,
            "state": self.state.value,
            "source": self.runtime_source,
        }
        if self.stages:
            facts["seconds"] = round(self.stages[-1].ended_at - self.received_at, 4)
        if self.failure is not None:
            facts |= {"code": self.failure.code, "detail": self.failure.detail}
        return facts

    def _from_receipt(self, timing: StageTiming) -> StageTiming:
        """What comes before the worker's own stages began when the node got the assignment.

        The image came for several workers maybe, and longer since. The worker knows when `runtime`
        ended; it began where the image was here.
        """
        if timing.stage not in {Stage.IMAGE, Stage.RUNTIME}:
            return timing
        began_at = max([self.received_at, *(stage.ended_at for stage in self.stages)])
        is_runtime = timing.stage is Stage.RUNTIME
        return timing.model_copy(
            update={
                "started_at": began_at,
                "seconds": max(0.0, timing.ended_at - began_at),
                "source": self.runtime_source if is_runtime else timing.source,
            }
        )
