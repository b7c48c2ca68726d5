"""What each node keeps part-way up the ladder: parked workers and sleeping ones; pure."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NewType

from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node, Standby, image_on
from control_plane.fleet.placement import Room
from control_plane.fleet.standby_demand import Start, Worth
from infra.contracts.base import NodeId
from infra.contracts.image import ImagePool
from infra.contracts.node import Runtime, SleepTerms
from infra.contracts.revision import ResolvedSource, Revision

NodeClass = NewType("NodeClass", str)

# A parked worker shares most pages with the fork server; what is its own stays below this.
WORKER_BYTES = 256 << 20
_MOST_PREPARED = 8
_NO_MORE = "an eighth of its memory holds no more"


@dataclass(frozen=True, slots=True)
class StandbyLimits:
    """How many workers a node keeps at most, and the share of its memory that sleepers may hold."""

    parked: int = 4
    sleepers: int = 8
    sleepers_memory: float = 0.5


@dataclass(frozen=True, slots=True)
class Wishes:
    """What all deployed models together want of a node: the most that a model of each image wishes
    for (None: of what the node runs anyway), that of the last deployed first, by what nodes run;
    what workers read ahead; who may sleep."""

    parked: Mapping[Runtime, Mapping[str | None, int]]
    prepare: tuple[ResolvedSource, ...]
    sleep: SleepTerms


def wishes_of(revisions: Sequence[Revision]) -> Wishes:
    """A parked worker fits every model of its image, and the node refills what is claimed, so the
    largest wish of any deployed model of an image is the least that each node keeps. They read
    ahead what is small of the models deployed last, among those that wish for standby. A sleeping
    worker fits the model it has; those of all models deployed now may sleep.
    """
    wishing = [revision for revision in revisions if revision.spec.scaling.standby > 0]
    latest = sorted(wishing, key=lambda revision: revision.created_at, reverse=True)
    may_sleep = tuple(one.name for one in revisions if one.spec.scaling.sleep > 0)
    return Wishes(
        parked={"process": _parked("process", latest), "container": _parked("container", latest)},
        prepare=tuple(revision.source for revision in latest[:_MOST_PREPARED]),
        sleep=SleepTerms(revisions=may_sleep),
    )


def size_standby(
    wishes: Wishes,
    nodes: Collection[Node],
    *,
    limits: StandbyLimits,
    worth: Mapping[NodeClass, Worth] = MappingProxyType({}),
    is_settled: Callable[[str], bool] = lambda image: True,
) -> Mapping[NodeId, Standby]:
    """Standby workers a node.

    What the starts of all models of an image are worth beyond the largest wish is shared by the
    nodes of a class. A node keeps at most what an eighth of its memory holds, and none where no
    model wishes for any. Of an image that is not settled, since its index is being made, none is
    parked: it would be pulled whole.
    """
    of_class = Counter(
        class_of(node, image) for node in nodes for image in wishes.parked[node.runtime]
    )
    sizes = {}
    for node in nodes:
        wanted = {
            image: _wanted(wish, worth.get(class_of(node, image)), of_class[class_of(node, image)])
            for image, wish in wishes.parked[node.runtime].items()
            if image is None or is_settled(image)
        }
        # A copy is not validated again: names of ten thousand models took 1 ms a node.
        sleep = wishes.sleep.model_copy(
            update={
                "most": limits.sleepers,
                "memory_bytes": int(node.memory_bytes * limits.sleepers_memory),
            }
        )
        workers, why = _within(node, wanted, limits)
        pools = tuple(
            ImagePool(image=image, workers=number) for image, number in workers.items() if image
        )
        sizes[node.node_id] = Standby(workers.get(None, 0), pools, wishes.prepare, sleep, why)
    return sizes


def class_of(node: Node, image: str | None) -> NodeClass:
    """Workers that are parked on nodes of one class take the same replicas."""
    kind = node.gpus[0].kind if node.gpus else "cpu"
    return NodeClass(kind if node.runtime == "process" else f"{kind} {image or 'container'}")


def start_of(revision: Revision, *, at: float, runtime_s: float, climb_s: float) -> Start:
    """A start whose climb took `climb_s` with the runtime, of which a parked worker spares it
    `runtime_s`: that and its part of `scaling.cold_penalty`, for memory of the replica's size."""
    part = min(1.0, runtime_s / climb_s) if climb_s > 0 else 0.0
    spared_s = runtime_s + revision.spec.scaling.cold_penalty * part
    return Start(at, spared_s * need_of(revision).memory_bytes / WORKER_BYTES)


def _parked(runtime: Runtime, latest: Sequence[Revision]) -> dict[str | None, int]:
    """The largest wish of each image that such nodes would run, that of the last deployed first."""
    wishes: dict[str | None, int] = {}
    for revision in latest:
        if runtime == "process" and need_of(revision).runs_image:
            continue
        image = image_on(runtime, revision)
        wishes[image] = max(wishes.get(image, 0), revision.spec.scaling.standby)
    return wishes


def _wanted(wish: int, demanded: Worth | None, nodes: int) -> tuple[int, str]:
    share = 0 if demanded is None else math.ceil(demanded.workers / nodes)
    if demanded is not None and share > wish:
        return share, demanded.reason
    return wish, "the largest scaling.standby"


def _within(
    node: Node, wanted: Mapping[str | None, tuple[int, str]], limits: StandbyLimits
) -> tuple[dict[str | None, int], str]:
    """Where not all fit, images take turns, that of the model deployed last first."""
    total = sum(number for number, _ in wanted.values())
    why = next((why for _, why in wanted.values()), "")
    holds = node.memory_bytes // 8 // WORKER_BYTES
    most = min(limits.parked, holds)
    if total <= most:
        return {image: number for image, (number, _) in wanted.items()}, why
    given: Counter[str | None] = Counter()
    while given.total() < most:
        for image, (number, _) in wanted.items():
            given[image] += given[image] < number and given.total() < most
    reason = "PLATFORM_STANDBY_MAX" if limits.parked <= holds else _NO_MORE
    return dict(given), f"{why}; {reason}"


def within(terms: SleepTerms, room: Room) -> SleepTerms:
    """Sleepers hold no memory that the node's replicas need."""
    free_bytes = max(0, room.free_memory_bytes)
    return terms.model_copy(update={"memory_bytes": min(terms.memory_bytes, free_bytes)})
