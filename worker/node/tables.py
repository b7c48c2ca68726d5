"""The tables of a node: its workers, its replicas, and what the control plane has yet to hear."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infra.contracts.base import ReplicaId
from infra.contracts.node import ReplicaReport, Sleeper
from worker.node.plan import Origin, ReplicaView, WorkerId, WorkerView
from worker.node.replica import Replica
from worker.node.sleepers import Sleeping

Urgency = Literal["soon", "now"]


@dataclass(slots=True)
class Worker:
    """A process below the agent, from its launch until it is gone."""

    origin: Origin
    launched_at: float
    is_parked: bool = False
    is_dying: bool = False
    replica_id: ReplicaId | None = None
    sleeping: Sleeping | None = None

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
        self._unreported: dict[ReplicaId, ReplicaReport] = {}

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

    def standby_ready(self) -> int:
        """Parked workers that nobody has claimed."""
        return sum(worker.is_standby for worker in self.workers.values())

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

    def worker_views(self) -> tuple[WorkerView, ...]:
        """Live workers for the plan; who sleeps is not among them."""
        return tuple(
            WorkerView(worker_id, worker.origin, worker.is_parked, worker.replica_id)
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
