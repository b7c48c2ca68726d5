"""Which node gets a replica: a pure choice that explains itself when there is none."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from control_plane.capacity.port import Need
from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from infra.contracts.base import NodeId
from infra.contracts.node import Gpu
from infra.contracts.revision import Revision
from infra.gpus import Wish, choose, suits

GIB = 1 << 30
NO_CONTAINERS = "the model names an image, and all nodes run workers as processes"
RUN_CONTAINERS = (
    "leave out `image`, or run a node's workers in containers: PLATFORM_RUNTIME=container, or "
    "PLATFORM_NODE_RUNTIME of an agent"
)


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has left; `standby_free` parked workers are not promised to anybody.

    `runs_images`: its workers are containers, of any image.

    `free_gpus` are those that no replica has and nothing is wrong with.
    `has_sleeper`: a worker sleeps there with the model that looks for a place.
    """

    node_id: NodeId
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    free_memory_bytes: int
    free_gpus: tuple[Gpu, ...]
    standby_free: int
    replicas: int
    has_sleeper: bool = False
    runs_images: bool = False


@dataclass(frozen=True, slots=True)
class NoRoom:
    """No node can take the replica; `may_come` when one could if others left it.

    `reason` is for whoever asked, a tenant; `nearest` for who runs the platform: the node that
    lacks least, and what it lacks.
    """

    reason: str
    may_come: bool
    hint: str | None = None
    nearest: str | None = None


class Taken(NamedTuple):
    """What replicas take of a node, draining ones included; each that loads, a parked worker."""

    memory_bytes: int = 0
    loading: int = 0
    replicas: int = 0

    def moved(self, before: Replica | None, after: Replica) -> "Taken":
        """The same after a replica has come, changed or ended."""
        was_there, is_there = before is not None and not before.is_over, not after.is_over
        was_loading, is_loading = before is not None and before.is_loading, after.is_loading
        if (was_there, was_loading) == (is_there, is_loading):
            return self
        more = is_there - was_there
        memory_bytes = more * need_of(after.revision).memory_bytes if more else 0
        return Taken(
            self.memory_bytes + memory_bytes,
            self.loading + is_loading - was_loading,
            self.replicas + more,
        )


NOTHING = Taken()


def room_on(node: Node, replicas: Iterable[Replica], *, wanted_by: Revision | None = None) -> Room:
    """What a node has left beside its replicas."""
    held = tuple(replicas)
    taken = NOTHING
    for replica in held:
        taken = taken.moved(None, replica)
    room = room_beside(taken, node, held)
    return room if wanted_by is None else room_for(wanted_by, room, node, lambda: held)


def room_for(
    revision: Revision, room: Room, node: Node, replicas: Callable[[], Iterable[Replica]]
) -> Room:
    """The room as one revision sees it: a worker that sleeps with its model, those parked with
    its image. The node's replicas are looked at only where one of them loads."""
    if any(sleeper.revision == revision.name for sleeper in node.sleepers):
        room = replace(room, has_sleeper=True)
    if node.runtime == "process":
        return room
    image = node.image_for(revision)
    free = node.parked_with(image)
    if free and room.standby_free < node.parked:
        free -= sum(it.is_loading and node.image_for(it.revision) == image for it in replicas())
    return replace(room, standby_free=free)


def room_beside(taken: Taken, node: Node, replicas: Iterable[Replica]) -> Room:
    """What a node has left beside what these replicas take. Sleepers take none: they give way."""
    return Room(
        node_id=node.node_id,
        memory_bytes=node.memory_bytes,
        gpus=node.gpus,
        free_memory_bytes=node.memory_bytes - taken.memory_bytes,
        free_gpus=_free_gpus(node.gpus, tuple(replicas)) if node.gpus else (),
        standby_free=node.parked - taken.loading,
        replicas=taken.replicas,
        runs_images=node.runtime == "container",
    )


def _free_gpus(gpus: Sequence[Gpu], replicas: Sequence[Replica]) -> tuple[Gpu, ...]:
    """Those that neither a replica has nor will be given as soon as its node hears of it.

    What a node's process still has of a replica that is over comes free in a moment.
    """
    ours = {replica.replica_id for replica in replicas}
    told = {gpu.replica_id for gpu in gpus}
    free = [gpu for gpu in gpus if gpu.replica_id not in ours and gpu.trouble is None]
    for replica in replicas:
        need = need_of(replica.revision)
        if need.gpus.count and replica.replica_id not in told:
            foreseen = choose(free, need.gpus) or ()
            free = [gpu for gpu in free if gpu.gpu_id not in foreseen]
    return tuple(free)


def place(need: Need, rooms: Sequence[Room]) -> NodeId | NoRoom:
    """The node for one more replica.

    1. only nodes that can run its image, with the GPU class, the free GPUs and the free memory;
    2. of these one where a worker sleeps with the model;
    3. of these one with a parked worker that nobody has claimed;
    4. of these the one with the fewest replicas, then the most free memory, then the first id.
    """
    fitting = [room for room in rooms if _misfit(need, room) is None]
    if fitting:
        return _best(fitting).node_id
    if not rooms:
        return NoRoom("no node is registered", may_come=False)
    return _explain(need, rooms)


def _best(fitting: Sequence[Room]) -> Room:
    """Not a key of all that counts: a start looks at every node, and most differ in one of them."""
    best = [room for room in fitting if room.has_sleeper] or fitting
    best = [room for room in best if room.standby_free > 0] or best
    fewest = min(room.replicas for room in best)
    best = [room for room in best if room.replicas == fewest]
    return min(best, key=lambda room: (-room.free_memory_bytes, room.node_id))


def _misfit(need: Need, room: Room) -> str | None:
    if need.runs_image and not room.runs_images:
        return "runs workers as processes"
    if need.gpus.count and choose(room.free_gpus, need.gpus) is None:
        return _missing_gpus(need, room)
    if need.memory_bytes > room.free_memory_bytes:
        return f"has {_gib(room.free_memory_bytes)} of {_gib(room.memory_bytes)} memory free"
    return None


def _missing_gpus(need: Need, room: Room) -> str:
    suiting = [gpu for gpu in room.gpus if suits(gpu, need.gpus)]
    if not suiting:
        return f"has {_gpus(room.gpus)}"
    num_free = sum(suits(gpu, need.gpus) for gpu in room.free_gpus)
    troubles = "".join(f", {gpu.gpu_id}: {gpu.trouble}" for gpu in suiting if gpu.trouble)
    return f"has {_gpus(suiting)}, {num_free} of them free{troubles}"


def _explain(need: Need, rooms: Sequence[Room]) -> NoRoom:
    rooms = sorted(rooms, key=lambda room: room.node_id)
    if need.runs_image:
        rooms = [room for room in rooms if room.runs_images]
        if not rooms:
            return NoRoom(NO_CONTAINERS, may_come=False, hint=RUN_CONTAINERS)
    may_come = any(_misfit(need, _emptied(room)) is None for room in rooms)
    best = max(rooms, key=lambda room: (_num_suiting(need, room), room.free_memory_bytes))
    asked = f"{_gib(need.memory_bytes)} of memory"
    if need.gpus.count:
        asked = f"{_wished(need.gpus)} and {asked}"
    estimate = ", estimated from its weights: set resources.memory_mib" if need.is_estimate else ""
    if need.gpus.count and not _num_suiting(need, best):
        every = [gpu for room in rooms for gpu in room.gpus]
        return NoRoom(f"a replica needs {asked}{estimate}; the nodes have {_gpus(every)}", may_come)
    reason = f"a replica needs {asked}{estimate}; no node has that{' left' if may_come else ''}"
    return NoRoom(reason, may_come, nearest=f"node {best.node_id} {_misfit(need, best)}")


def _emptied(room: Room) -> Room:
    """The node without its replicas; what is wrong with a GPU stays."""
    usable = tuple(gpu for gpu in room.gpus if gpu.trouble is None)
    return replace(room, free_memory_bytes=room.memory_bytes, free_gpus=usable)


def _num_suiting(need: Need, room: Room) -> int:
    return sum(suits(gpu, need.gpus) for gpu in room.gpus)


def _wished(wish: Wish) -> str:
    """`1 h100 GPU`, or `2 GPUs with 16.0 GiB each`."""
    kind = f"{wish.kind} " if wish.kind else ""
    what = f"{kind}GPU" if wish.count == 1 else f"{kind}GPUs"
    each = "" if wish.count == 1 else " each"
    memory = f" with {_gib(wish.memory_bytes)}{each}" if wish.memory_bytes else ""
    return f"{wish.count} {what}{memory}"


def _gpus(gpus: Iterable[Gpu]) -> str:
    """`4 l4 (24.0 GiB), 1 t4 (16.0 GiB)`, or that there are none."""
    kinds = Counter(f"{gpu.kind} ({_gib(gpu.memory_bytes)})" for gpu in gpus)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "no GPU"


def _gib(size: int) -> str:
    return f"{max(0, size) / GIB:.1f} GiB"
