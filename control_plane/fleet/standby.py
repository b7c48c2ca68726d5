"""How many standby workers each node keeps, and what they read ahead: pure."""

from collections.abc import Iterable, Mapping

from control_plane.fleet.node import Node, Standby
from infra.contracts.base import NodeId
from infra.contracts.revision import Revision

# A parked worker shares most pages with the fork server; what is its own stays below this.
_WORKER_BYTES = 256 << 20
_MOST_PREPARED = 8


def size_standby(
    revisions: Iterable[Revision], nodes: Iterable[Node], *, most: int
) -> Mapping[NodeId, Standby]:
    """Standby workers a node.

    A parked worker fits every model, and the node refills what is claimed, so the largest wish
    of any deployed model is enough for all. A node keeps at most `most`, and at most what an
    eighth of its memory holds. They read ahead what is small of the models deployed last, among
    those that wish for standby.
    """
    wishing = [revision for revision in revisions if revision.spec.scaling.standby > 0]
    wish = max((revision.spec.scaling.standby for revision in wishing), default=0)
    latest = sorted(wishing, key=lambda revision: revision.created_at, reverse=True)
    prepare = tuple(revision.source for revision in latest[:_MOST_PREPARED])
    return {
        node.node_id: Standby(min(wish, most, node.memory_bytes // 8 // _WORKER_BYTES), prepare)
        for node in nodes
    }
