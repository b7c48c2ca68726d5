"""Writes what happens to replicas and nodes into logs that people read."""

import structlog

from control_plane.deployments.store import Change
from control_plane.fleet.logbook import Logbook, LogEntry
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from infra.clock import Clock
from infra.contracts.base import ModelName
from infra.contracts.revision import ReplicaState

log = structlog.get_logger()

PLATFORM = "platform"


class Chronicle:
    """Listens to the fleet, the deployments and the decisions; subscribe its methods to them."""

    def __init__(self, logbook: Logbook, clock: Clock) -> None:
        self._logbook = logbook
        self._clock = clock

    def replica_changed(self, before: Replica | None, after: Replica) -> None:
        """A line at every move of a replica."""
        if before is not None and before.state is after.state:
            return
        log.info(
            "replica.moved",
            to=after.state.value,
            replica=after.replica_id,
            node=after.node_id,
            detail=after.detail,
        )
        self.note(after.model, at=after.since, text=_sentence(after))

    def node_changed(self, before: Node | None, after: Node | None) -> None:
        """A log event when a node goes, for whatever reason; who knows of a bad one warns of it.

        Its registration is logged where it is answered.
        """
        if before is not None and after is None:
            log.info("node.left", node=before.node_id)

    def deployment_changed(self, change: Change) -> None:
        """A deleted model's lines go with it."""
        if change.after is None:
            self._logbook.forget(change.model)
        else:
            self.note(change.model, at=self._clock.now(), text=_redirected(change))

    def note(self, model: ModelName, *, at: float, text: str) -> None:
        """A line of the platform's own in a model's log."""
        self._logbook.append(model, LogEntry(at, PLATFORM, text))


def _redirected(change: Change) -> str:
    assert change.after is not None
    shares = change.after.shares
    if len(shares) > 1:
        return "; ".join(f"{it.percent} % of requests go to {it.revision.name}" for it in shares)
    name = change.after.leading.name
    return f"{name} is deployed" if change.before is None else f"requests go to {name}"


def _sentence(replica: Replica) -> str:
    name, why = replica.replica_id, f": {replica.detail}" if replica.detail else ""
    match replica.state:
        case ReplicaState.ASSIGNED:
            return f"{name} goes to node {replica.node_id}{why}"
        case ReplicaState.STARTING:
            return f"{name} starts from rung {replica.from_rung}"
        case ReplicaState.READY:
            return f"{name} is ready {replica.since - replica.wanted_at:.3f} s after it was wanted"
        case ReplicaState.DRAINING:
            return f"{name} drains{why}"
        case ReplicaState.STOPPED:
            return f"{name} has stopped"
        case ReplicaState.FAILED:
            return f"{name} failed{why}"
        case ReplicaState.LOST:
            return f"{name} is lost{why}"
