"""The tables of a node: its workers, its replicas, and what the control plane has yet to hear."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infra.contracts.base import ReplicaId
from infra.contracts.image import ImagePool
from infra.contracts.node import Gpu, ReplicaReport, Sleeper
from worker.node.allotment import GpusAtHand
from worker.node.gpu_table import GpuTable, Holder
from worker.node.plan import Origin, ReplicaView, WorkerId, WorkerView
from worker.node.replica import Replica
from worker.node.sleepers import Sleeping

Urgency = Literal["soon", "now"]


@dataclass(slots=True)
class Worker:
    """A process below the agent, from its launch until it is gone."""

    origin: Origin
    launched_at: float
    image: str | None = None
    is_parked: bool = False
    is_dying: bool = False
    replica_id: ReplicaId | None = None
    sleeping: Sleeping | None = None
    heard_at: float = 0.0

    def __post_init__(self) -> None:
        self.heard_at = self.launched_at

    @property
    def is_standby(self) -> bool:
        """Parked, and as good for one model as for another."""
        is_free = self.replica_id is None and self.sleeping is None
        return self.is_parked and is_free and not self.is_dying


class Tables:
    """Belongs to the event loop; `on_news` is called after every change worth reporting."""

    def __init__(self) -> None:
        self.on_news: Callable[[Urgency], None] = lambda urgency: None
        self.workers: dict[WorkerId, Worker] = {}
        self.replicas: dict[ReplicaId, Replica] = {}
        self.gpus = GpuTable()
        self._unreported: dict[ReplicaId, ReplicaReport] = {}
        self._told_gpus: tuple[Gpu, ...] = ()

    def put(self, replica: Replica, urgency: Urgency) -> None:
        """The replica as it is from now on, to be reported."""
        replica_id = replica.assignment.replica_id
        self.replicas[replica_id] = replica
        self._unreported[replica_id] = replica.report()
        self.on_news(urgency)

    def reports(self) -> tuple[ReplicaReport, ...]:
        """The whole truth of every replica; nothing is left unreported."""
        self._unreported.clear()
        return tuple(replica.report() for replica in self.replicas.values())

    def take_changes(self) -> tuple[ReplicaReport, ...]:
        """Reports of the replicas that changed since they were last asked for."""
        changes = tuple(self._unreported.values())
        self._unreported.clear()
        return changes

    def standby_ready(self, image: str | None = None) -> int:
        """Parked workers that nobody has claimed; None: of the node's own image, or of none."""
        parked = (worker for worker in self.workers.values() if worker.is_standby)
        return sum(worker.image == image for worker in parked)

    def pools_ready(self) -> tuple[ImagePool, ...]:
        """The same of other images."""
        images = {worker.image for worker in self.workers.values() if worker.is_standby}
        return tuple(
            ImagePool(image=image, workers=self.standby_ready(image))
            for image in sorted(image for image in images if image is not None)
        )

    def sleeping(self) -> tuple[Sleeping, ...]:
        """Who waits on the weights rung and may go on."""
        return tuple(
            worker.sleeping
            for worker in self.workers.values()
            if worker.sleeping is not None and not worker.is_dying
        )

    def sleepers(self) -> tuple[Sleeper, ...]:
        """Those, as the control plane is told of them."""
        return tuple(one.told for one in self.sleeping())

    def is_climbing(self) -> bool:
        """Whether any replica is on its way up."""
        return any(replica.is_climbing for replica in self.replicas.values())

    def told_gpus(self) -> tuple[Gpu, ...]:
        """The GPUs and who owns them, as the control plane is told of them."""
        self._told_gpus = self.gpus.told(self._holder)
        return self._told_gpus

    def take_gpu_changes(self) -> tuple[Gpu, ...] | None:
        """The same where it differs from what was told last, else None."""
        before = self._told_gpus
        return told if (told := self.told_gpus()) != before else None

    def who_has_gpus(self) -> str:
        """For people: every GPU and why it is not free."""
        states = []
        for gpu in self.gpus.told(self._holder):
            state = gpu.trouble or gpu.replica_id or gpu.sleeper or "free"
            states.append(f"{gpu.gpu_id} ({gpu.kind}): {state}")
        return ", ".join(states) or "there are none"

    def gpus_at_hand(self) -> GpusAtHand:
        """GPUs for the plan."""
        leaving = [
            gpu
            for worker_id, worker in self.workers.items()
            if worker.is_dying or self._has_ended(worker)
            for gpu in self.gpus.of(worker_id)
        ]
        return GpusAtHand(self.gpus.free(), (*self.gpus.unread(), *leaving))

    def worker_views(self) -> tuple[WorkerView, ...]:
        """Live workers for the plan; who sleeps is not among them."""
        return tuple(
            WorkerView(worker_id, worker.origin, worker.is_parked, worker.replica_id, worker.image)
            for worker_id, worker in self.workers.items()
            if not worker.is_dying and worker.sleeping is None
        )

    def replica_views(self) -> dict[ReplicaId, ReplicaView]:
        """Replicas for the plan; one whose worker is dying has none."""
        alive = {view.worker_id for view in self.worker_views()}
        return {
            replica_id: ReplicaView(
                replica.state, replica.worker_id if replica.worker_id in alive else None
            )
            for replica_id, replica in self.replicas.items()
        }

    def _has_ended(self, worker: Worker) -> bool:
        """Its replica has, and so will its process."""
        return worker.replica_id is not None and self.replicas[worker.replica_id].has_ended

    def _holder(self, worker_id: WorkerId) -> Holder:
        worker = self.workers[worker_id]
        sleeper = None if worker.sleeping is None else worker.sleeping.told.revision
        return Holder(worker.replica_id, sleeper)
