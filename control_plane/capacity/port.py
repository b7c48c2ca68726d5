"""The port to where machines come from, and the values that pass through it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from infra.contracts.base import NodeId
from infra.errors import NoCapacity
from infra.gpus import Wish


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica asks of a machine."""

    memory_bytes: int
    gpus: Wish = Wish()  # noqa: RUF009 - frozen value
    is_estimate: bool = False
    runs_image: bool = False  # one of its own, so its workers have to be containers


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine that a provider runs or is about to run.

    `is_elastic` says that it was launched for replicas and may be terminated without them. When
    its node has not registered within `boot_s` of its launch, or of having left, nobody waits
    for it any longer.
    """

    node_id: NodeId
    launched_at: float
    is_elastic: bool
    boot_s: float


EndedListener = Callable[[NodeId, str], None]


class CapacityProvider(Protocol):
    """Starts machines that register themselves as nodes."""

    async def launch(self, node_id: NodeId, need: Need) -> None:
        """Starts a machine under this id that can hold `need`; returns once it is on its way.

        May be repeated: an id that is on its way or runs is left alone. Raises NoCapacity.
        """
        ...

    async def terminate(self, node_id: NodeId) -> None:
        """Ends a machine and everything on it; one that does not exist stays so."""
        ...

    def describe(self) -> tuple[Machine, ...]:
        """The machines that run or are on their way; a failed launch is not among them."""
        ...

    def subscribe_ended(self, listener: EndedListener) -> None:
        """Calls back, with a reason, as soon as a machine is known to be gone."""
        ...


class NoMachines:
    """A provider of nothing, for a platform whose nodes are started by somebody else."""

    async def launch(self, node_id: NodeId, need: Need) -> None:
        raise NoCapacity("nodes are not started by this platform")

    async def terminate(self, node_id: NodeId) -> None:
        return

    def describe(self) -> tuple[Machine, ...]:
        return ()

    def subscribe_ended(self, listener: EndedListener) -> None:
        return
