"""What a node agent tells its workers and its fork server, and hears from them, as JSON."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from infra.contracts.base import Contract, GpuId
from infra.contracts.node import ClockReading, Failure, ReplicaAssignment
from infra.contracts.revision import ResolvedSource
from infra.contracts.stage import Moved, StageProgress, StageTiming


class Hello(Contract):
    """First line of a worker: it has torch and waits on the runtime rung."""

    kind: Literal["hello"] = "hello"
    pid: int
    origin: Literal["fork", "spawn"]


class Progress(Contract):
    """The worker is this far into a stage."""

    kind: Literal["progress"] = "progress"
    progress: StageProgress


class StageDone(Contract):
    """A stage of the climb has ended."""

    kind: Literal["stage"] = "stage"
    timing: StageTiming


class ImageRead(Contract):
    """What the worker's container has read of its image until now; said by its launcher."""

    kind: Literal["image-read"] = "image-read"
    read: Moved


class Ready(Contract):
    """The worker serves on this address."""

    kind: Literal["ready"] = "ready"
    host: str
    port: int


class Failed(Contract):
    """The worker could not start and is about to exit."""

    kind: Literal["failed"] = "failed"
    failure: Failure


class Asleep(Contract):
    """The worker's replica has drained; it keeps the model and waits on the weights rung."""

    kind: Literal["asleep"] = "asleep"
    memory_bytes: int


class Start(Contract):
    """Climb to READY with this replica; `clock` relates the agent's time to CLOCK_MONOTONIC."""

    kind: Literal["start"] = "start"
    assignment: ReplicaAssignment
    clock: ClockReading
    host: str
    log_path: str
    gpus: tuple[GpuId, ...] = Field(default=(), description="Its own, one for each rank.")


class Prepare(Contract):
    """While parked: read what is small of these sources, most likely first."""

    kind: Literal["prepare"] = "prepare"
    sources: tuple[ResolvedSource, ...]


class Drain(Contract):
    """Finish what runs, take nothing new, then sleep or exit; at the deadline exit anyway."""

    kind: Literal["drain"] = "drain"
    deadline_s: float
    may_sleep: bool = False


FromWorker = Annotated[
    Hello | Progress | StageDone | ImageRead | Ready | Failed | Asleep,
    Field(discriminator="kind"),
]
ToWorker = Annotated[Start | Prepare | Drain, Field(discriminator="kind")]

from_worker: TypeAdapter[FromWorker] = TypeAdapter(FromWorker)
to_worker: TypeAdapter[ToWorker] = TypeAdapter(ToWorker)


class Fork(Contract):
    """Asks the fork server for one worker; the message carries the worker's end of its link."""

    worker: int
    ranks: int = Field(default=0, ge=0, description="Further processes below it, for its model.")


class ZygoteUp(Contract):
    """First message of a fork server: it has torch and can fork."""

    kind: Literal["up"] = "up"


class Forked(Contract):
    """A worker was forked; it has been handed over to the agent."""

    kind: Literal["forked"] = "forked"
    worker: int
    pid: int


class ForkFailed(Contract):
    """The kernel refused the fork."""

    kind: Literal["fork-failed"] = "fork-failed"
    worker: int
    detail: str


FromZygote = Annotated[ZygoteUp | Forked | ForkFailed, Field(discriminator="kind")]

from_zygote: TypeAdapter[FromZygote] = TypeAdapter(FromZygote)
