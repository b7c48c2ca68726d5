"""The port to where machines come from, and the values that pass through it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType, Protocol

from infra.contracts.base import NodeId
from infra.contracts.stage import Rung
from infra.gpus import Wish

MachineKind = NewType("MachineKind", str)  # the class of its GPUs, as `resources.gpu` names it
LaunchToken = NewType("LaunchToken", str)  # names one wish for a machine, at most 64 characters
CPU = MachineKind("cpu")  # a machine without any


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica asks of a machine."""

    memory_bytes: int
    gpus: Wish = Wish()  # noqa: RUF009 - frozen value
    is_estimate: bool = False
    runs_image: bool = False  # one of its own, so its workers have to be containers

    def suits(self, kind: MachineKind) -> bool:
        """Whether machines of a kind may hold it, as far as their kind says."""
        if self.gpus.count == 0:
            return True
        return kind != CPU and self.gpus.kind in {None, kind}


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine that a provider has, runs or is about to run.

    Its `rung` is `stopped` while it is in standby or on its way there, else `node`. `is_elastic`
    says that it was launched for replicas and may be ended without them. When its node has not
    registered within `boot_s` of its last launch or start, or of having left, nobody waits for it
    any longer.
    """

    node_id: NodeId
    launched_at: float
    is_elastic: bool
    boot_s: float
    kind: MachineKind = CPU
    rung: Rung = Rung.NODE


@dataclass(frozen=True, slots=True)
class Ended:
    """A machine is known to be gone, with all that ran on it."""

    node_id: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """A machine will be taken away, at `at` (unix seconds) where that is known."""

    node_id: NodeId
    reason: str
    at: float | None = None


CapacityEvent = Ended | Leaving
CapacityListener = Callable[[CapacityEvent], None]


class CapacityProvider(Protocol):
    """Runs machines that register themselves as nodes, under the ids that it gives them.

    What may be tried again later is a NoCapacity (with the pools `tried`), a QuotaExceeded or a
    ProviderUnavailable (Throttled); what will fail again is a BadSpec.
    """

    async def open(self) -> None:
        """Finds out what there is, and begins to watch it. Once, before anything else."""
        ...

    async def close(self) -> None:
        """Stops watching. Ends the machines that live with this process, and leaves the others."""
        ...

    async def launch(self, need: Need, *, token: LaunchToken) -> NodeId:
        """Starts a new machine that can hold `need`; returns once it is on its way.

        May be repeated with its token: that gives the same machine. Raises NoCapacity,
        QuotaExceeded, ProviderUnavailable, BadSpec.
        """
        ...

    async def start(self, need: Need, *, token: LaunchToken) -> NodeId | None:
        """Starts a machine that can hold `need` from standby; None where none waits there.

        May be repeated with its token: that gives the same machine. Raises what `launch` raises.
        """
        ...

    async def stop(self, node_id: NodeId) -> None:
        """Ends what runs on a machine and puts it in standby, or ends it where it cannot wait.

        May be repeated. A machine that is not ours is left alone. Raises ProviderUnavailable.
        """
        ...

    async def terminate(self, node_id: NodeId) -> None:
        """Ends a machine and everything on it, in standby or not; one that does not exist stays so.

        May be repeated. A machine that is not ours is left alone. Raises ProviderUnavailable.
        """
        ...

    async def hold(self, kind: MachineKind, stopped: int) -> None:
        """Keeps so many machines of a kind in standby; they come and go after this returns.

        One that starts is replaced. One that is stopped waits beside them until this is called
        again. Nothing where there is no standby. Raises ProviderUnavailable.
        """
        ...

    def describe(self) -> tuple[Machine, ...]:
        """The machines that wait, run or are on their way; a failed launch is not among them."""
        ...

    def subscribe(self, listener: CapacityListener) -> None:
        """Calls back, on the event loop, as soon as a machine is known to be gone or to go."""
        ...
