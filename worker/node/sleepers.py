"""Which workers may go on sleeping on the weights rung: pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infra.contracts.base import ModelName
from infra.contracts.node import Gpu, Recipe, ReplicaAssignment, Sleeper, SleepTerms


@dataclass(frozen=True, slots=True)
class Sleeping:
    """A worker that sleeps: what the control plane is told of it, and for whom it can wake.

    Its process keeps its GPUs, and ends where they are needed or, `is_hurt`, no longer work.
    """

    worker_id: int
    model: ModelName
    recipe: Recipe
    told: Sleeper
    gpus: tuple[Gpu, ...] = ()
    is_over: bool = False
    is_hurt: bool = False


def wakeable(sleeping: Iterable[Sleeping], assignment: ReplicaAssignment) -> Sleeping | None:
    """The one that fell asleep last of those that hold what the assignment asks for.

    Only as the model it was: one process never serves two models, who may belong to two tenants.
    """
    fitting = [
        one
        for one in sleeping
        if one.model == assignment.model and one.recipe == assignment.recipe and not one.is_hurt
    ]
    return max(fitting, key=lambda one: (one.told.since, one.worker_id), default=None)


def to_end(sleeping: Sequence[Sleeping], terms: SleepTerms) -> list[tuple[Sleeping, str]]:
    """Those that may not sleep any longer, and why.

    1. their time is over, a GPU of theirs is in trouble, or their revision is no longer served;
    2. of the others those that fell asleep first, until number and memory are within the terms.
    """
    ended: list[tuple[Sleeping, str]] = []
    kept_bytes = num_kept = 0
    for one in sorted(sleeping, key=lambda one: (one.told.since, one.worker_id), reverse=True):
        if one.is_over:
            ended.append((one, "slept its time"))
        elif one.is_hurt:
            ended.append((one, "its GPU is in trouble"))
        elif one.told.revision not in terms.revisions:
            ended.append((one, "its revision is no longer served"))
        elif num_kept == terms.most:
            ended.append((one, f"{terms.most} others fell asleep later"))
        elif kept_bytes + one.told.memory_bytes > terms.memory_bytes:
            ended.append((one, "its memory is needed"))
        else:
            num_kept, kept_bytes = num_kept + 1, kept_bytes + one.told.memory_bytes
    return ended
