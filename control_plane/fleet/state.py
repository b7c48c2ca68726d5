"""What there is of nodes and replicas, and who hears when it changes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

from control_plane.fleet.announcements import Announcements
from control_plane.fleet.counts import Counts
from control_plane.fleet.node import Node, Standby
from control_plane.fleet.placement import Room, room_on
from control_plane.fleet.replica import Climb, Endpoint, Replica
from control_plane.fleet.replica_table import ReplicaTable
from control_plane.fleet.rooms import Rooms
from control_plane.fleet.standby import within
from infra.contracts.base import NodeId, ReplicaId, RevisionName
from infra.contracts.image import ImagePin
from infra.contracts.node import DesiredState, Leaving, NodeReport, ReplicaReport
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import Rung, StageTiming

ReplicaListener = Callable[[Replica | None, Replica], None]
NodeListener = Callable[[Node | None, Node | None], None]
DesiredListener = Callable[[NodeId], None]


class Fleet:
    """Nodes and replicas, on the event loop only.

    Every change is announced to every listener before the call that made it returns, in the
    order the changes were made, also when a listener makes further changes.
    """

    def __init__(
        self, *, remembered: int = 1000, index_of: Callable[[str], str | None] = lambda image: None
    ) -> None:
        """`index_of`: the digest of the only index by which nodes may mount an image."""
        self._index_of = index_of
        self._nodes: dict[NodeId, Node] = {}
        self._leaving: dict[NodeId, Leaving] = {}
        self._replicas = ReplicaTable(remembered=remembered)
        self._rooms = Rooms()
        self._replica_listeners: list[ReplicaListener] = []
        self._node_listeners: list[NodeListener] = []
        self._desired_listeners: list[DesiredListener] = []
        self._announcements = Announcements()

    # -- what is -------------------------------------------------------------------------------

    def nodes(self) -> tuple[Node, ...]:
        """The registered nodes, by id."""
        return tuple(self._nodes[node_id] for node_id in sorted(self._nodes))

    def node(self, node_id: NodeId) -> Node | None:
        return self._nodes.get(node_id)

    def replicas(self) -> tuple[Replica, ...]:
        """Every replica that has not ended, oldest first."""
        return tuple(self._replicas)

    def replica(self, replica_id: ReplicaId) -> Replica | None:
        """A replica, also one that ended not long ago."""
        return self._replicas.get(replica_id) or self._replicas.ended(replica_id)

    def of_revision(self, revision: RevisionName) -> tuple[Replica, ...]:
        """The revision's replicas that have not ended, oldest first."""
        return tuple(self._replicas.of_revision(revision))

    def counts(self, revision: RevisionName) -> Counts:
        """How many replicas the revision has."""
        return self._replicas.counts(revision)

    def total(self) -> Counts:
        """How many replicas all revisions have."""
        return self._replicas.total

    def on_node(self, node_id: NodeId) -> tuple[Replica, ...]:
        """The node's replicas that have not ended, oldest first."""
        return tuple(self._replicas.on_node(node_id))

    def is_empty(self, node_id: NodeId) -> bool:
        """Whether the node has no replica."""
        return self._replicas.is_empty(node_id)

    def ready(self, revision: RevisionName) -> tuple[Endpoint, ...]:
        """Where the revision's READY replicas answer, oldest first."""
        return self._replicas.ready(revision)

    def climb(self, revision: RevisionName) -> Climb | None:
        """The revision's loading replica that is furthest up; None when none is loading."""
        return self._replicas.climb(revision)

    def timings(self, replica_id: ReplicaId) -> tuple[StageTiming, ...]:
        """The measured stages of a replica's climb; empty for one that is not remembered."""
        replica = self.replica(replica_id)
        return () if replica is None else replica.timings()

    def from_rung(self, replica_id: ReplicaId) -> Rung:
        """The rung a replica's climb began on."""
        replica = self.replica(replica_id)
        return Rung.NODE if replica is None else replica.from_rung

    def clock_uncertainty_s(self, node_id: NodeId) -> float:
        """How far the node's clock may differ from ours."""
        node = self._nodes.get(node_id)
        return 0.0 if node is None else node.clock_uncertainty_s

    def desired_state(self, node_id: NodeId) -> DesiredState:
        """What a registered node should look like; raises KeyError for another."""
        node, replicas = self._nodes[node_id], self.on_node(node_id)
        assignments = tuple(it.assignment(node.image_for(it.revision)) for it in replicas)
        images = {it.image for it in assignments} | {it.image for it in node.standby.pools}
        pins = ((image, self._index_of(image)) for image in sorted(filter(None, images)))
        return DesiredState(
            version=node.version,
            standby=node.standby.workers,
            pools=node.standby.pools,
            prepare=node.standby.prepare,
            pins=tuple(ImagePin(image=image, index=it) for image, it in pins if it is not None),
            replicas=assignments,
            sleep=within(node.standby.sleep, room_on(node, replicas)),
        )

    def rooms(self, *, wanted_by: Revision | None = None) -> list[Room]:
        """What each node that stays has left for one more replica of a revision."""
        return self._rooms.all(self._replicas.on_node, wanted_by=wanted_by)

    def leaving(self) -> Mapping[NodeId, Leaving]:
        """The nodes that will be taken away."""
        return MappingProxyType(self._leaving)

    def sleepers(self, revision: RevisionName) -> int:
        """How many workers sleep with the revision's model."""
        sleepers = (sleeper for node in self._nodes.values() for sleeper in node.sleepers)
        return sum(sleeper.revision == revision for sleeper in sleepers)

    # -- who hears -----------------------------------------------------------------------------

    def subscribe(self, listener: ReplicaListener) -> None:
        """Calls `listener(before, after)` at every change of a replica; before is None at first."""
        self._replica_listeners.append(listener)

    def subscribe_nodes(self, listener: NodeListener) -> None:
        """Calls `listener(before, after)` when a node joins, changes (not its lease) or leaves."""
        self._node_listeners.append(listener)

    def subscribe_desired(self, listener: DesiredListener) -> None:
        """Calls `listener(node_id)` when what a node should look like has changed."""
        self._desired_listeners.append(listener)

    @contextmanager
    def one_change(self) -> Iterator[None]:
        """Announces what happens inside only when all of it has happened."""
        with self._announcements.held():
            yield

    # -- what changes --------------------------------------------------------------------------

    def join(self, node: Node) -> None:
        """A node registers; one that is known keeps its place in line and its standby, and will be
        taken away as it was, unless its machine has booted since."""
        before = self._nodes.get(node.node_id)
        if before is not None:
            node = replace(
                node,
                version=before.version + 1,
                standby=before.standby,
                leaving=before.leaving if before.boot_id == node.boot_id else None,
            )
        self._put_node(before, node)
        self._say_desired(node.node_id)

    def renew(self, node_id: NodeId, *, lease_until: float) -> None:
        """A node was heard of; not announced."""
        self._nodes[node_id] = replace(self._nodes[node_id], lease_until=lease_until)

    def observe(self, report: NodeReport) -> None:
        """A node said how it is."""
        before = self._nodes[report.node_id]
        after = replace(
            before,
            standby_ready=report.standby_ready,
            pools_ready=report.pools_ready,
            sleepers=report.sleepers,
            gpus=before.gpus if report.gpus is None else report.gpus,
            clock_uncertainty_s=report.clock_uncertainty_s,
        )
        if after != before:
            self._put_node(before, after)

    def set_standby(self, node_id: NodeId, standby: Standby) -> None:
        """Which standby workers a node should keep; nothing for a node that is gone."""
        before = self._nodes.get(node_id)
        if before is None:
            return
        if before.standby == standby:  # as nodes see it
            self._nodes[node_id] = replace(before, standby=standby)
            return
        self._put_node(before, replace(before, standby=standby, version=before.version + 1))
        self._say_desired(node_id)

    def depart(self, node_id: NodeId, leaving: Leaving) -> None:
        """A node will be taken away: it gets no new replica. May be repeated; what has a time
        stands. Nothing for a node that is gone."""
        before = self._nodes.get(node_id)
        if before is None or before.leaving == leaving:
            return
        if before.leaving is None or (before.leaving.at is None and leaving.at is not None):
            self._put_node(before, replace(before, leaving=leaving))

    def leave(self, node_id: NodeId, *, now: float, detail: str) -> None:
        """A node is gone and all its replicas with it; may be repeated."""
        before = self._nodes.pop(node_id, None)
        self._leaving.pop(node_id, None)
        if before is None:
            return
        with self.one_change():  # nobody who hears of one may take another for one that serves
            for replica in self.on_node(node_id):
                self._put(replica, replica.to(ReplicaState.LOST, now=now, detail=detail))
            self._rooms.forget(node_id)
            self._say_node(before, None)

    def assign(self, replica: Replica) -> None:
        """A new replica is given to its node."""
        assert self._replicas.get(replica.replica_id) is None, "a replica is assigned once"
        assert replica.node_id in self._nodes, "a replica is assigned to a registered node"
        self._put(None, replica)

    def hear(self, node_id: NodeId, report: ReplicaReport, *, now: float) -> None:
        """News of a replica from its node; of a replica it does not have, nothing."""
        before = self._replicas.get(report.replica_id)
        if before is None or before.node_id != node_id:
            return
        after = before.heard(report, now=now)
        if after != before:
            self._put(before, after)

    def drain(self, replica_id: ReplicaId, *, deadline_s: float, now: float, detail: str) -> None:
        """A READY replica takes nothing new, finishes and exits."""
        before = self._replicas.get(replica_id)
        assert before is not None, "who drains has not ended"
        moved = before.to(ReplicaState.DRAINING, now=now, detail=detail)
        self._put(before, replace(moved, drain_deadline_s=deadline_s))

    def end(self, replica_id: ReplicaId, state: ReplicaState, *, now: float, detail: str) -> None:
        """A replica is over; its node is told to kill what may be left. May be repeated."""
        before = self._replicas.get(replica_id)
        if before is not None:
            self._put(before, before.to(state, now=now, detail=detail))

    # -- bookkeeping ---------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Asserts that every index says the same as the table."""
        self._replicas.check_integrity()
        assert all(replica.node_id in self._nodes for replica in self._replicas)
        nodes = self._nodes.values()
        assert self._leaving == {it.node_id: it.leaving for it in nodes if it.leaving}
        rooms = {room.node_id: room for room in self.rooms()}
        assert rooms == {
            it.node_id: room_on(it, self.on_node(it.node_id)) for it in nodes if not it.leaving
        }

    def _put(self, before: Replica | None, after: Replica) -> None:
        node_id = after.node_id
        self._replicas.put(before, after)
        self._rooms.moved(before, after)
        for listener in self._replica_listeners:
            self._announcements.add(listener, before, after)
        if _told(before) != _told(after) and (node := self._nodes.get(node_id)) is not None:
            self._nodes[node_id] = replace(node, version=node.version + 1)
            self._say_desired(node_id)
        self._announcements.tell()

    def _put_node(self, before: Node | None, after: Node) -> None:
        self._nodes[after.node_id] = after
        if after.leaving is None:
            self._leaving.pop(after.node_id, None)
        else:
            self._leaving[after.node_id] = after.leaving
        self._rooms.changed(after)
        self._say_node(before, after)

    def _say_node(self, before: Node | None, after: Node | None) -> None:
        for listener in self._node_listeners:
            self._announcements.add(listener, before, after)
        self._announcements.tell()

    def _say_desired(self, node_id: NodeId) -> None:
        for listener in self._desired_listeners:
            self._announcements.add(listener, node_id)
        self._announcements.tell()


def _told(replica: Replica | None) -> str | None:
    """What a replica's node is told of it: run, drain or nothing."""
    if replica is None or replica.is_over:
        return None
    return "drain" if replica.state is ReplicaState.DRAINING else "run"
