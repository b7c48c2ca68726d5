"""How long replicas, and those who wait for them, are left as they are."""

from dataclasses import dataclass

from control_plane.fleet.replica import Replica
from infra.contracts.revision import ReplicaState


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the reconciler puts up with what."""

    drain_margin_s: float = 5.0  # after its deadline a node ends a draining replica and says so
    accept_s: float = 30.0  # a node that reports takes what it is given
    stall_s: float = 600.0  # a loading replica without any progress is given up
    node_wait_s: float = 15.0  # without any node, waiters are told that there is none
    leave_margin_s: float = 45.0  # of the time that a node has left, for requests to end in
    sweep_s: float = 1.0

    def hangs_at(self, replica: Replica) -> float | None:
        """When a replica counts as hanging if nothing is heard of it; None for one that may go on
        for ever."""
        if replica.state is ReplicaState.DRAINING:
            return replica.since + replica.drain_deadline_s + self.drain_margin_s
        return replica.progressed_at + self._stall_s(replica) if replica.is_loading else None

    def end_of(self, replica: Replica) -> tuple[ReplicaState, str]:
        """What becomes of a replica that hangs, and why."""
        if replica.state is ReplicaState.DRAINING:
            return ReplicaState.STOPPED, "was killed at its drain deadline"
        return ReplicaState.FAILED, f"made no progress for {self._stall_s(replica):g} s"

    def _stall_s(self, replica: Replica) -> float:
        return self.accept_s if replica.state is ReplicaState.ASSIGNED else self.stall_s
