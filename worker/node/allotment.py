"""Which GPUs a replica that is to start gets, and who makes room where there are too few: pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from infra.contracts.base import GpuId
from infra.contracts.node import Gpu
from infra.gpus import Wish, choose
from worker.node.sleepers import Sleeping


@dataclass(frozen=True, slots=True)
class GpusAtHand:
    """Those that can be assigned, and those whose owners are about to be gone."""

    free: tuple[Gpu, ...] = ()
    leaving: tuple[Gpu, ...] = ()


class Allotment:
    """Serves one replica after the other; what one waits for no later one is given.

    `giving_way` are the sleepers that have to end: of those that may go on, who fell asleep first.
    """

    def __init__(self, at_hand: GpusAtHand, sleeping: Iterable[Sleeping]) -> None:
        self.giving_way: list[Sleeping] = []
        self._free = list(at_hand.free)
        self._leaving = list(at_hand.leaving)
        self._sleeping = sorted((one for one in sleeping if one.gpus), key=_worth_keeping)

    def take(self, wish: Wish) -> tuple[GpuId, ...] | None:
        """Its GPUs; None where it has to wait for some.

        1. from those that are free;
        2. else it waits for those that are about to be;
        3. else, for them and as few sleepers' as are needed;
        4. else, for whatever happens.
        """
        if wish.count == 0:
            return ()
        chosen = choose(self._free, wish)
        if chosen is not None:
            self._take_away(chosen)
            return chosen
        for num_ending in range(len(self._sleeping) + 1):
            theirs = [gpu for one in self._sleeping[:num_ending] for gpu in one.gpus]
            coming = (*self._free, *self._leaving, *theirs)
            chosen = choose(coming, wish)
            if chosen is not None:
                self._wait_for(chosen)
                break
        return None

    def _wait_for(self, chosen: tuple[GpuId, ...]) -> None:
        ending = [one for one in self._sleeping if any(gpu.gpu_id in chosen for gpu in one.gpus)]
        self.giving_way += ending
        self._leaving += [gpu for one in ending for gpu in one.gpus]
        self._sleeping = [one for one in self._sleeping if one not in ending]
        self._take_away(chosen)

    def _take_away(self, chosen: tuple[GpuId, ...]) -> None:
        self._free = [gpu for gpu in self._free if gpu.gpu_id not in chosen]
        self._leaving = [gpu for gpu in self._leaving if gpu.gpu_id not in chosen]


def _worth_keeping(one: Sleeping) -> tuple[bool, float, int]:
    return not (one.is_over or one.is_hurt), one.told.since, one.worker_id
