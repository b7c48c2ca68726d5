"""When a replica may have begun to hang, or has proved healthy."""

from collections.abc import Callable, Iterator

from control_plane.fleet.crash_loop import CrashPolicy
from control_plane.fleet.patience import Patience
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from infra.agenda import Agenda
from infra.contracts.base import ReplicaId, RevisionName
from infra.contracts.revision import ReplicaState


class Vigil:
    """Keeps the time of each replica, so that a sweep need not look at all of them.

    `has_failed` says of a revision whether failures of it are not settled yet.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        patience: Patience,
        policy: CrashPolicy,
        has_failed: Callable[[RevisionName], bool],
    ) -> None:
        self._fleet = fleet
        self._patience = patience
        self._policy = policy
        self._has_failed = has_failed
        self._agenda = Agenda[ReplicaId]()
        fleet.subscribe(self._replica_changed)

    def due(self, *, now: float) -> Iterator[Replica]:
        """Those whose time has come, and had come if they had not got further since."""
        for replica_id in sorted(self._agenda.take(now=now)):
            replica = self._fleet.replica(replica_id)
            due_at = None if replica is None or replica.is_over else self._due_at(replica)
            if replica is None or due_at is None:
                continue
            if now < due_at:
                self._agenda.add_by(replica_id, due_at)
            else:
                yield replica

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        if after.is_over:
            self._agenda.forget(after.replica_id)
        elif (due_at := self._due_at(after)) is not None:
            self._agenda.add_by(after.replica_id, due_at)

    def _due_at(self, replica: Replica) -> float | None:
        """When something is to be done about a replica if nothing is heard of it: one that serves
        has, in time, settled what failed before it."""
        if replica.state is not ReplicaState.READY or replica.ready_at is None:
            return self._patience.hangs_at(replica)
        has_failed = self._has_failed(replica.revision.name)
        return replica.ready_at + self._policy.healthy_s if has_failed else None
