"""Which node gets a replica: a pure choice that explains itself when there is none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from control_plane.capacity.port import Need
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from infra.contracts.base import NodeId, RevisionName
from infra.contracts.revision import Revision

GIB = 1 << 30
MIB = 1 << 20

# Host memory of a replica where the spec says nothing: its weights, a quarter of them for the KV
# cache, and the process (CPython with torch measured 230 MiB resident, doubled for the batch).
_PROCESS_BYTES = 512 * MIB
_KV_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has left; `standby_free` parked workers are not promised to anybody.

    `has_sleeper`: a worker sleeps there with the model that looks for a place.
    """

    node_id: NodeId
    memory_bytes: int
    gpus: int
    gpu: str | None
    free_memory_bytes: int
    free_gpus: int
    standby_free: int
    replicas: int
    has_sleeper: bool = False


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No node can take the replica; `may_come` when one could if others left it."""

    reason: str
    may_come: bool


def need_of(revision: Revision) -> Need:
    """What one replica of a revision occupies."""
    resources = revision.spec.resources
    if resources.memory_mib is not None:
        return Need(resources.memory_mib * MIB, resources.gpus, resources.gpu)
    draft_bytes = 0 if revision.draft_source is None else revision.draft_source.total_bytes
    weight_bytes = revision.facts.weight_bytes + draft_bytes
    estimate = int(weight_bytes * (1 + _KV_SHARE)) + _PROCESS_BYTES
    return Need(estimate, resources.gpus, resources.gpu, is_estimate=True)


def room_on(
    node: Node, replicas: Iterable[Replica], *, wanted_by: RevisionName | None = None
) -> Room:
    """What a node has left beside its replicas, draining ones included.

    Sleepers take no room: they give way.
    """
    held = tuple(replicas)
    needs = [need_of(replica.revision) for replica in held]
    claims = sum(replica.is_loading for replica in held)
    return Room(
        node_id=node.node_id,
        memory_bytes=node.memory_bytes,
        gpus=node.gpus,
        gpu=node.gpu,
        free_memory_bytes=node.memory_bytes - sum(need.memory_bytes for need in needs),
        free_gpus=node.gpus - sum(need.gpus for need in needs),
        standby_free=node.standby_ready - claims,
        replicas=len(held),
        has_sleeper=any(sleeper.revision == wanted_by for sleeper in node.sleepers),
    )


def place(need: Need, rooms: Sequence[Room]) -> NodeId | NoRoom:
    """The node for one more replica.

    1. only nodes with the GPU class, the free GPUs and the free memory;
    2. of these one where a worker sleeps with the model;
    3. of these one with a parked worker that nobody has claimed;
    4. of these the one with the fewest replicas, then the most free memory, then the first id.
    """
    fitting = [room for room in rooms if _misfit(need, room) is None]
    if fitting:
        return min(fitting, key=_preference).node_id
    if not rooms:
        return NoRoom("no node is registered", may_come=False)
    return _explain(need, rooms)


def _preference(room: Room) -> tuple[bool, bool, int, int, str]:
    return (
        not room.has_sleeper,
        room.standby_free <= 0,
        room.replicas,
        -room.free_memory_bytes,
        room.node_id,
    )


def _misfit(need: Need, room: Room) -> str | None:
    if need.gpus > 0 and need.gpu is not None and need.gpu != room.gpu:
        return f"has {room.gpu or 'no'} GPUs"
    if need.gpus > room.free_gpus:
        return f"has {room.free_gpus} of {room.gpus} GPUs free"
    if need.memory_bytes > room.free_memory_bytes:
        return f"has {_gib(room.free_memory_bytes)} of {_gib(room.memory_bytes)} memory free"
    return None


def _explain(need: Need, rooms: Sequence[Room]) -> NoRoom:
    empty = [
        Room(
            room.node_id,
            room.memory_bytes,
            room.gpus,
            room.gpu,
            free_memory_bytes=room.memory_bytes,
            free_gpus=room.gpus,
            standby_free=0,
            replicas=0,
        )
        for room in rooms
    ]
    may_come = any(_misfit(need, room) is None for room in empty)
    best = max(rooms, key=lambda room: (room.free_gpus, room.free_memory_bytes))
    asked = f"{_gib(need.memory_bytes)} of memory"
    if need.gpus:
        asked = f"{need.gpus} {need.gpu or ''} GPUs and ".replace("  ", " ") + asked
    estimate = ", estimated from its weights: set resources.memory_mib" if need.is_estimate else ""
    reason = f"a replica needs {asked}{estimate}; node {best.node_id} {_misfit(need, best)}"
    return NoRoom(reason, may_come)


def _gib(size: int) -> str:
    return f"{max(0, size) / GIB:.1f} GiB"
