"""What each node keeps part-way up the ladder: parked workers and sleeping ones; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from control_plane.fleet.node import Node, Standby
from control_plane.fleet.placement import Room
from infra.contracts.base import NodeId
from infra.contracts.node import SleepTerms
from infra.contracts.revision import Revision

# A parked worker shares most pages with the fork server; what is its own stays below this.
_WORKER_BYTES = 256 << 20
_MOST_PREPARED = 8


@dataclass(frozen=True, slots=True)
class StandbyLimits:
    """How many workers a node keeps at most, and the share of its memory that sleepers may hold."""

    parked: int = 4
    sleepers: int = 8
    sleepers_memory: float = 0.5


def size_standby(
    revisions: Sequence[Revision], nodes: Iterable[Node], *, limits: StandbyLimits
) -> Mapping[NodeId, Standby]:
    """Standby workers a node.

    A parked worker fits every model, and the node refills what is claimed, so the largest wish
    of any deployed model is enough for all. A node keeps at most what an eighth of its memory
    holds. They read ahead what is small of the models deployed last, among those that wish for
    standby. A sleeping worker fits the model it has; those of all models deployed now may sleep.
    """
    wishing = [revision for revision in revisions if revision.spec.scaling.standby > 0]
    wish = max((revision.spec.scaling.standby for revision in wishing), default=0)
    latest = sorted(wishing, key=lambda revision: revision.created_at, reverse=True)
    prepare = tuple(revision.source for revision in latest[:_MOST_PREPARED])
    may_sleep = tuple(one.name for one in revisions if one.spec.scaling.sleep > 0)
    return {
        node.node_id: Standby(
            min(wish, limits.parked, node.memory_bytes // 8 // _WORKER_BYTES),
            prepare,
            SleepTerms(
                revisions=may_sleep,
                most=limits.sleepers,
                memory_bytes=int(node.memory_bytes * limits.sleepers_memory),
            ),
        )
        for node in nodes
    }


def within(terms: SleepTerms, room: Room) -> SleepTerms:
    """Sleepers hold no memory that the node's replicas need."""
    free_bytes = max(0, room.free_memory_bytes)
    return terms.model_copy(update={"memory_bytes": min(terms.memory_bytes, free_bytes)})
