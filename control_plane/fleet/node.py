"""One machine as the fleet knows it: a frozen value."""

from dataclasses import dataclass, field

from infra.contracts.base import NodeId
from infra.contracts.image import ImagePool
from infra.contracts.node import Gpu, Leaving, NodeRegistration, Runtime, Sleeper, SleepTerms
from infra.contracts.revision import ResolvedSource, Revision


@dataclass(frozen=True, slots=True)
class Standby:
    """Workers to keep on the runtime rung, the sources of which they read ahead, who may sleep.

    `workers` are those of the node's own image, or of none; `pools` those of others. `reason`
    says why so many; a node is not told.
    """

    workers: int = 0
    pools: tuple[ImagePool, ...] = ()
    prepare: tuple[ResolvedSource, ...] = ()
    sleep: SleepTerms = SleepTerms()  # noqa: RUF009 - frozen value
    reason: str = field(default="", compare=False)

    @property
    def total(self) -> int:
        return self.workers + sum(pool.workers for pool in self.pools)


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
    boot_id: str = "unknown"  # of its machine's kernel
    booted_at: float = 0.0  # that kernel began
    asked_at: float | None = None  # its cloud was asked for it, by the cloud's clock
    runtime: Runtime = "process"
    standby: Standby = Standby()
    standby_ready: int = 0
    pools_ready: tuple[ImagePool, ...] = ()
    sleepers: tuple[Sleeper, ...] = ()
    clock_uncertainty_s: float = 0.0
    leaving: Leaving | None = None  # its machine will be taken away

    @classmethod
    def registered(
        cls, registration: NodeRegistration, *, version: int, lease_s: float, now: float
    ) -> "Node":
        """The node that a registration introduces; its clocks are reckoned into ours, `now` being
        when we heard of it."""
        its = registration.clock
        return cls(
            node_id=registration.node_id,
            cpus=registration.cpus,
            memory_bytes=registration.memory_bytes,
            gpus=registration.gpus,
            started_at=now - (its.wall - registration.started_at),
            registered_at=now,
            lease_until=now + lease_s,
            version=version,
            boot_id=its.boot_id,
            booted_at=now - its.monotonic,
            asked_at=registration.asked_at,
            runtime=registration.runtime,
        )

    @property
    def parked(self) -> int:
        """Workers that wait on the runtime rung, of whatever image."""
        return self.standby_ready + sum(pool.workers for pool in self.pools_ready)

    def parked_with(self, image: str | None) -> int:
        """Those of one image; None: the node's own, or none at all."""
        if image is None:
            return self.standby_ready
        return sum(pool.workers for pool in self.pools_ready if pool.image == image)

    def image_for(self, revision: Revision) -> str | None:
        """What a replica of the revision runs here; None: what the node runs anyway."""
        return image_on(self.runtime, revision)


def image_on(runtime: Runtime, revision: Revision) -> str | None:
    """What a replica of the revision runs on such a node; None: what the node runs anyway.

    An image that the model names is told to a node of processes, too, which then refuses.
    """
    image = revision.image
    if image is None or (runtime == "process" and not image.is_asked_for):
        return None
    return image.reference
