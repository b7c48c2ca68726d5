"""The processes that compute one model together, and what they tell each other of tensors."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from infra.errors import ReplicaFailed

WAIT_S = 30.0  # for the others of a group in one exchange, at most


class Group(Protocol):
    """One rank's view. All ranks call the same methods in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def add_up(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors, on every rank; `x` may be overwritten.

        Raises ReplicaFailed when a rank is gone or does not answer.
        """
        ...

    def gather(self, x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        """On rank 0 all ranks' columns, [rows, sum of widths]; elsewhere `x` itself.

        `x` is [rows, widths[rank]]. Raises as `add_up`.
        """
        ...

    def spread(self, x: torch.Tensor) -> None:
        """Overwrites `x` with rank 0's, on every rank. Raises as `add_up`."""
        ...


class Alone:
    """The group of a model that one process computes."""

    rank = 0
    size = 1

    def add_up(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather(self, x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        return x

    def spread(self, x: torch.Tensor) -> None:
        pass


ALONE = Alone()


def backend_for(gpus: int) -> str:
    """torch.distributed's name of how ranks talk: between GPUs, or on the CPU for none."""
    return "nccl" if gpus else "gloo"


class TorchGroup:
    """A group over torch.distributed: gloo between CPUs of one machine, NCCL between GPUs."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def join(
        cls, meeting: Path, rank: int, size: int, *, backend: str, wait_s: float = WAIT_S
    ) -> "TorchGroup":
        """Meets the others over a file that does not exist yet, in a private folder.

        Raises ReplicaFailed when they do not all come in time.
        """
        os.putenv("GLOO_SOCKET_IFNAME", "lo")  # the ranks of a replica are on one machine
        try:
            dist.init_process_group(
                backend,
                store=FileStore(str(meeting), size),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=wait_s),
            )
            dist.barrier()
        except RuntimeError as error:
            raise ReplicaFailed(f"rank {rank} of {size} did not meet the others") from error
        return cls(rank, size)

    def add_up(self, x: torch.Tensor) -> torch.Tensor:
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            raise self._broken(error) from error
        return x

    def gather(self, x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        widest = max(widths)
        mine = torch.nn.functional.pad(x, (0, widest - x.shape[1])).contiguous()
        parts = None
        if self.rank == 0:
            parts = [torch.empty_like(mine) for _ in widths]
        try:
            dist.gather(mine, parts, dst=0)
        except RuntimeError as error:
            raise self._broken(error) from error
        if parts is None:
            return x
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], 1)

    def spread(self, x: torch.Tensor) -> None:
        try:
            dist.broadcast(x, src=0)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: RuntimeError) -> ReplicaFailed:
        reason = str(error).splitlines()[0][:200]
        return ReplicaFailed(f"rank {self.rank} of {self.size} lost the others: {reason}")
