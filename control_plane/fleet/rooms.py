"""What every node has left, kept in step with its replicas: a start must not count them all."""

from collections.abc import Callable, Iterable

from control_plane.fleet.node import Node
from control_plane.fleet.placement import NOTHING, Room, Taken, room_beside, room_for
from control_plane.fleet.replica import Replica
from infra.contracts.base import NodeId
from infra.contracts.revision import Revision


class Rooms:
    """Hears of every change of a replica; a node's room is drawn up when it is asked for."""

    def __init__(self) -> None:
        self._taken: dict[NodeId, Taken] = {}
        self._known: dict[NodeId, tuple[Node, Room]] = {}

    def moved(self, before: Replica | None, after: Replica) -> None:
        """A replica came, changed or ended."""
        node_id = after.node_id
        was_taken = self._taken.get(node_id, NOTHING)
        taken = was_taken.moved(before, after)
        if taken is was_taken and not after.revision.spec.resources.gpus:
            return
        self._known.pop(node_id, None)
        if taken == NOTHING:
            self._taken.pop(node_id, None)
        else:
            self._taken[node_id] = taken

    def forget(self, node_id: NodeId) -> None:
        """The node is gone."""
        self._known.pop(node_id, None)

    def room(
        self,
        node: Node,
        replicas: Callable[[], Iterable[Replica]],
        *,
        wanted_by: Revision | None,
    ) -> Room:
        """What a node has left beside these, which are all that it has."""
        known = self._known.get(node.node_id)
        if known is not None and known[0] is node:
            room = known[1]
        else:
            room = room_beside(self._taken.get(node.node_id, NOTHING), node, replicas())
            self._known[node.node_id] = (node, room)
        return room if wanted_by is None else room_for(wanted_by, room, node, replicas)
