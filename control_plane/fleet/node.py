"""One machine as the fleet knows it: a frozen value."""

from dataclasses import dataclass, field

from infra.contracts.base import NodeId
from infra.contracts.node import Gpu, NodeRegistration, Sleeper, SleepTerms
from infra.contracts.revision import ResolvedSource


@dataclass(frozen=True, slots=True)
class Standby:
    """Workers to keep on the runtime rung, the sources of which they read ahead, who may sleep.

    `reason` says why so many; a node is not told.
    """

    workers: int = 0
    prepare: tuple[ResolvedSource, ...] = ()
    sleep: SleepTerms = SleepTerms()  # noqa: RUF009 - frozen value
    reason: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Node:
    """A registered machine; `version` numbers its desired state, `standby` is part of that."""

    node_id: NodeId
    cpus: int
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    started_at: float
    registered_at: float
    lease_until: float
    version: int
    standby: Standby = Standby()
    standby_ready: int = 0
    sleepers: tuple[Sleeper, ...] = ()
    clock_uncertainty_s: float = 0.0

    @classmethod
    def registered(
        cls, registration: NodeRegistration, *, version: int, lease_s: float, now: float
    ) -> "Node":
        """The node that a registration introduces."""
        return cls(
            node_id=registration.node_id,
            cpus=registration.cpus,
            memory_bytes=registration.memory_bytes,
            gpus=registration.gpus,
            started_at=registration.started_at,
            registered_at=now,
            lease_until=now + lease_s,
            version=version,
        )
