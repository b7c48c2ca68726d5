"""The GPUs of a node: what each is, and the one worker that owns it."""

from collections.abc import Callable
from dataclasses import dataclass

from infra.contracts.base import GpuId, ReplicaId, RevisionName
from infra.contracts.node import Gpu
from worker.node.plan import WorkerId

# Of its memory, others may use a part this small of a GPU that we use: a desktop needs less.
OTHERS_SHARE = 1 / 16


@dataclass(frozen=True, slots=True)
class Holder:
    """For whom a worker owns GPUs: the replica that it is, or the revision it sleeps with."""

    replica_id: ReplicaId | None = None
    sleeper: RevisionName | None = None


class GpuTable:
    """Belongs to the event loop. A GPU has one owner, until that worker's processes are gone.

    What was given back is free again when a reading that began later finds nobody else's memory.
    `on_given_back` is called when such a reading is wanted.
    """

    def __init__(self) -> None:
        self.on_given_back: Callable[[], None] = lambda: None
        self.num_given_back = 0
        self._gpus: tuple[Gpu, ...] = ()
        self._owners: dict[GpuId, WorkerId] = {}
        self._unread: dict[GpuId, int] = {}  # given back as the n-th, not read since

    def heard(self, gpus: tuple[Gpu, ...], *, after: int) -> bool:
        """A reading that began when `num_given_back` was `after`; whether any can be less or more.

        Memory in use alone is no news.
        """
        before = [(gpu.gpu_id, self._trouble(gpu)) for gpu in self._gpus]
        self._gpus = gpus
        self._unread = {gpu: number for gpu, number in self._unread.items() if number > after}
        return before != [(gpu.gpu_id, self._trouble(gpu)) for gpu in gpus]

    def take(self, worker_id: WorkerId, gpu_ids: tuple[GpuId, ...]) -> None:
        """The worker owns them from now on."""
        free = {gpu.gpu_id for gpu in self.free()}
        for gpu_id in gpu_ids:
            assert gpu_id in free, f"{gpu_id} is not free"
            self._owners[gpu_id] = worker_id

    def give_back(self, worker_id: WorkerId) -> None:
        """Its processes are gone; may be repeated."""
        given_back = self.owned_by(worker_id)
        if not given_back:
            return
        self.num_given_back += 1
        for gpu_id in given_back:
            del self._owners[gpu_id]
            self._unread[gpu_id] = self.num_given_back
        self.on_given_back()

    def owned_by(self, worker_id: WorkerId) -> tuple[GpuId, ...]:
        """What the worker owns, in the order of its ranks."""
        return tuple(gpu_id for gpu_id, owner in self._owners.items() if owner == worker_id)

    def of(self, worker_id: WorkerId) -> tuple[Gpu, ...]:
        """The same, as they were read last."""
        owned = self.owned_by(worker_id)
        return tuple(gpu for gpu in self._gpus if gpu.gpu_id in owned)

    def free(self) -> tuple[Gpu, ...]:
        """What can be assigned now."""
        return tuple(gpu for gpu in self._gpus if self._is_free(gpu) and self._trouble(gpu) is None)

    def unread(self) -> tuple[Gpu, ...]:
        """What was given back and is about to be free."""
        return tuple(gpu for gpu in self._gpus if gpu.gpu_id in self._unread)

    def told(self, holder: Callable[[WorkerId], Holder]) -> tuple[Gpu, ...]:
        """All of them, with whom they belong to and what is wrong with them."""
        return tuple(self._told(gpu, holder) for gpu in self._gpus)

    def check_integrity(self) -> None:
        """Asserts that what is owned exists and is not free as well."""
        assert not self._owners.keys() & self._unread.keys()
        assert not self._owners.keys() & {gpu.gpu_id for gpu in self.free()}

    def _told(self, gpu: Gpu, holder: Callable[[WorkerId], Holder]) -> Gpu:
        owner = self._owners.get(gpu.gpu_id)
        held_for = Holder() if owner is None else holder(owner)
        return gpu.model_copy(
            update={
                "replica_id": held_for.replica_id,
                "sleeper": held_for.sleeper,
                "trouble": self._trouble(gpu),
            }
        )

    def _is_free(self, gpu: Gpu) -> bool:
        return gpu.gpu_id not in self._owners and gpu.gpu_id not in self._unread

    def _trouble(self, gpu: Gpu) -> str | None:
        if gpu.trouble is not None or not self._is_free(gpu):
            return gpu.trouble
        if gpu.used_bytes > gpu.memory_bytes * OTHERS_SHARE:
            return f"others use {gpu.used_bytes / (1 << 30):.1f} GiB of it"
        return None
