"""What every node has left, kept in step with its replicas: a start must not count them all."""

from collections.abc import Callable, Iterable
from functools import partial

from control_plane.fleet.node import Node
from control_plane.fleet.placement import NOTHING, Room, Taken, room_beside, room_for
from control_plane.fleet.replica import Replica
from infra.contracts.base import NodeId
from infra.contracts.revision import Revision

OnNode = Callable[[NodeId], Iterable[Replica]]


class Rooms:
    """Hears of every change of a replica or a node; a node's room is drawn up anew when rooms are
    asked for after that."""

    def __init__(self) -> None:
        self._taken: dict[NodeId, Taken] = {}
        self._nodes: dict[NodeId, Node] = {}
        self._rooms: dict[NodeId, Room] = {}
        self._stale: set[NodeId] = set()

    def moved(self, before: Replica | None, after: Replica) -> None:
        """A replica came, changed or ended."""
        node_id = after.node_id
        was_taken = self._taken.get(node_id, NOTHING)
        taken = was_taken.moved(before, after)
        if taken is was_taken and not after.revision.spec.resources.gpus:
            return
        if node_id in self._nodes:
            self._stale.add(node_id)
        if taken == NOTHING:
            self._taken.pop(node_id, None)
        else:
            self._taken[node_id] = taken

    def changed(self, node: Node) -> None:
        """A node came, or something else about it than its lease and its version changed; one that
        will be taken away has no room."""
        if node.leaving is not None:
            self.forget(node.node_id)
            return
        self._nodes[node.node_id] = node
        self._stale.add(node.node_id)

    def forget(self, node_id: NodeId) -> None:
        """The node is gone, or will be."""
        self._nodes.pop(node_id, None)
        self._rooms.pop(node_id, None)
        self._stale.discard(node_id)

    def all(self, on_node: OnNode, *, wanted_by: Revision | None) -> list[Room]:
        """What each node has left beside those that are on it, in the order in which they came, as
        that revision sees it."""
        for node_id in self._stale:
            taken = self._taken.get(node_id, NOTHING)
            self._rooms[node_id] = room_beside(taken, self._nodes[node_id], on_node(node_id))
        self._stale.clear()
        rooms = self._rooms
        if wanted_by is None:
            return [rooms[node_id] for node_id in self._nodes]
        return [
            room_for(wanted_by, rooms[node_id], node, partial(on_node, node_id))
            if node.sleepers or node.runtime != "process"
            else rooms[node_id]
            for node_id, node in self._nodes.items()
        ]
