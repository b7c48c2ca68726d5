"""How many standby workers each node keeps: a pure sum."""

from collections.abc import Iterable, Mapping

from control_plane.fleet.node import Node
from infra.contracts.base import NodeId
from infra.contracts.revision import Revision

# A parked worker shares most pages with the fork server; what is its own stays below this.
_WORKER_BYTES = 256 << 20


def size_standby(
    revisions: Iterable[Revision], nodes: Iterable[Node], *, most: int
) -> Mapping[NodeId, int]:
    """Standby workers a node.

    A parked worker fits every model, and the node refills what is claimed, so the largest wish
    of any deployed model is enough for all. A node keeps at most `most`, and at most what an
    eighth of its memory holds.
    """
    wish = max((revision.spec.scaling.standby for revision in revisions), default=0)
    return {
        node.node_id: min(wish, most, node.memory_bytes // 8 // _WORKER_BYTES) for node in nodes
    }
