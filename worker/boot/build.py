"""Builds the model of an assignment: alone, or as the first of several processes."""

from dataclasses import dataclass
from pathlib import Path

from infra.contracts.base import GpuId
from infra.contracts.node import ReplicaAssignment
from infra.errors import ReplicaFailed
from infra.sources.shared_files import SharedFiles
from worker.boot.followers import Part, ProcessFollowers
from worker.boot.model_files import ModelFiles
from worker.boot.ranks import Rank
from worker.models.causal_model import CausalModel
from worker.models.led import LedModel
from worker.models.parts import share_of
from worker.models.registry import with_recording
from worker.parallel.group import WAIT_S, TorchGroup, backend_for


@dataclass(frozen=True, slots=True)
class Site:
    """Where a replica is built: the node's packed weights, threads for each of its processes.

    `ranks` follow the first one, each with one of `gpus`.
    """

    packed: Path
    threads: int
    ranks: tuple[Rank, ...]
    gpus: tuple[GpuId, ...] = ()


def threads_for(assignment: ReplicaAssignment, cpus: int) -> int:
    """Threads of each of the replica's processes."""
    engine = assignment.engine
    return engine.threads or max(1, cpus // engine.tensor_parallel)


def build(
    files: ModelFiles, assignment: ReplicaAssignment, site: Site, shared: SharedFiles | None
) -> tuple[CausalModel, ProcessFollowers | None]:
    """The model, and the processes that compute it with this one; of files that are on their way
    those are `shared`. Raises PlatformError.
    """
    engine, gpus = assignment.engine, assignment.resources.gpus
    size = engine.tensor_parallel
    if size == 1:
        return with_recording(files.build(gpus=gpus)), None

    def part(rank: int, meeting: Path) -> Part:
        return Part(
            rank=rank,
            size=size,
            folder=files.folder,
            source=assignment.source,
            shared=shared,
            packed=site.packed,
            engine=engine,
            gpus=gpus,
            gpu_ids=site.gpus[rank : rank + 1],
            threads=site.threads,
            meeting=meeting,
            wait_s=WAIT_S,
        )

    share_of(files.config, 0, size)  # raises before a rank is told anything: rank 0 has the least
    followers = ProcessFollowers.start(site.ranks, part)
    try:
        followers.until_loading()
        group = TorchGroup.join(followers.meeting, 0, size, backend=backend_for(gpus))
        decoder = files.build(gpus=gpus, group=group)
        followers.until_ready()
    except ReplicaFailed as error:
        cause = followers.explain(error)
        followers.end()
        raise cause from error
    except BaseException:
        followers.end()
        raise
    return LedModel(decoder, group, followers), followers
