"""What each node keeps part-way up the ladder: parked workers and sleeping ones; pure."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NewType

from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node, Standby
from control_plane.fleet.placement import Room
from control_plane.fleet.standby_demand import Start, Worth
from infra.contracts.base import NodeId
from infra.contracts.node import SleepTerms
from infra.contracts.revision import Revision

NodeClass = NewType("NodeClass", str)

# A parked worker shares most pages with the fork server; what is its own stays below this.
WORKER_BYTES = 256 << 20
_MOST_PREPARED = 8


@dataclass(frozen=True, slots=True)
class StandbyLimits:
    """How many workers a node keeps at most, and the share of its memory that sleepers may hold."""

    parked: int = 4
    sleepers: int = 8
    sleepers_memory: float = 0.5


def size_standby(
    revisions: Sequence[Revision],
    nodes: Collection[Node],
    *,
    limits: StandbyLimits,
    worth: Mapping[NodeClass, Worth] = MappingProxyType({}),
) -> Mapping[NodeId, Standby]:
    """Standby workers a node.

    A parked worker fits every model, and the node refills what is claimed, so the largest wish
    of any deployed model is the least that each node keeps. What the starts of all models are
    worth beyond that is shared by the nodes of a class. A node keeps at most what an eighth of its
    memory holds, and none where no model wishes for any. They read ahead what is small of the
    models deployed last, among those that wish for standby. A sleeping worker fits the model it
    has; those of all models deployed now may sleep.
    """
    wishing = [revision for revision in revisions if revision.spec.scaling.standby > 0]
    wish = max((revision.spec.scaling.standby for revision in wishing), default=0)
    latest = sorted(wishing, key=lambda revision: revision.created_at, reverse=True)
    prepare = tuple(revision.source for revision in latest[:_MOST_PREPARED])
    may_sleep = tuple(one.name for one in revisions if one.spec.scaling.sleep > 0)
    of_class = Counter(class_of(node) for node in nodes)
    sizes = {}
    for node in nodes:
        demanded = worth.get(class_of(node), Worth()) if wishing else Worth()
        workers, why = _workers(node, wish, demanded, of_class[class_of(node)], limits)
        sleep = SleepTerms(
            revisions=may_sleep,
            most=limits.sleepers,
            memory_bytes=int(node.memory_bytes * limits.sleepers_memory),
        )
        sizes[node.node_id] = Standby(workers, prepare, sleep, why)
    return sizes


def class_of(node: Node) -> NodeClass:
    """Nodes of one class take the same replicas."""
    return NodeClass(node.gpus[0].kind if node.gpus else "cpu")


def start_of(revision: Revision, *, at: float, runtime_s: float, climb_s: float) -> Start:
    """A start whose climb took `climb_s` with the runtime, of which a parked worker spares it
    `runtime_s`: that and its part of `scaling.cold_penalty`, for memory of the replica's size."""
    part = min(1.0, runtime_s / climb_s) if climb_s > 0 else 0.0
    spared_s = runtime_s + revision.spec.scaling.cold_penalty * part
    return Start(at, spared_s * need_of(revision).memory_bytes / WORKER_BYTES)


def _workers(
    node: Node, wish: int, demanded: Worth, nodes: int, limits: StandbyLimits
) -> tuple[int, str]:
    share = math.ceil(demanded.workers / nodes)
    wanted = max(wish, share)
    why = demanded.reason if share > wish else "the largest scaling.standby" if wish else ""
    holds = node.memory_bytes // 8 // WORKER_BYTES
    if wanted <= min(limits.parked, holds):
        return wanted, why
    if limits.parked <= holds:
        return limits.parked, f"{why}; PLATFORM_STANDBY_MAX"
    return holds, f"{why}; an eighth of its memory holds no more"


def within(terms: SleepTerms, room: Room) -> SleepTerms:
    """Sleepers hold no memory that the node's replicas need."""
    free_bytes = max(0, room.free_memory_bytes)
    return terms.model_copy(update={"memory_bytes": min(terms.memory_bytes, free_bytes)})
