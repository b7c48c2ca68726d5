"""What a container gets once it is known what it will serve: its model's files, and its limits."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.clock import Clock
from infra.contracts.node import ReplicaAssignment
from infra.contracts.revision import ResolvedSource
from infra.contracts.stage import Stage, StageProgress, StageTiming
from infra.contracts.worker_link import FromWorker, Progress, StageDone
from infra.sources.port import ModelSource
from worker.node.container.mounts import mount_into
from worker.node.container.spec import MODELS, USER, Limits

CACHE = f"{MODELS}/kept"  # what one replica of a model leaves for the next
# Named as the hub's own cache names a repository: links from one of its snapshots stay inside.
_TARGETS = (f"{MODELS}/models--model", f"{MODELS}/models--draft")
_FOLDER_OF_KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Furniture:
    """Where the files of the model are, and of its draft model: on this machine and inside.

    `was_fetched`: the stages up to the weights' arrival have been told.
    """

    folders: tuple[Path, ...]
    was_fetched: bool


class Furnishing:
    """Files come from where containers cannot reach: the agent fetches, containers see them."""

    def __init__(self, sources: ModelSource, cache_dir: Path, clock: Clock) -> None:
        self._sources = sources
        self._cache_dir = cache_dir
        self._clock = clock

    async def bring(
        self, assignment: ReplicaAssignment, tell: Callable[[FromWorker], None]
    ) -> Furniture:
        """Fetches what is not here; tells how far it is, and which stages that took.

        Raises PlatformError.
        """
        sources = _sources(assignment)
        remote = [source for source in sources if not source.uri.startswith("file:")]
        began_at = self._clock.now()
        loop = asyncio.get_running_loop()

        def on_progress(fraction: float) -> None:
            said = Progress(progress=StageProgress(stage=Stage.WEIGHTS, fraction=fraction))
            loop.call_soon_threadsafe(tell, said)

        if remote:
            tell(_took(Stage.RUNTIME, began_at, began_at))
        opened = [
            await asyncio.to_thread(
                self._sources.open, source, self._cache_dir, _nowhere, on_progress
            )
            for source in sources
        ]
        if remote:
            size = sum(source.total_bytes for source in remote)
            origin = opened[sources.index(remote[0])].origin
            tell(_took(Stage.WEIGHTS, began_at, self._clock.now(), size=size, origin=origin))
        return Furniture(tuple(each.folder for each in opened), was_fetched=bool(remote))

    def mount(self, assignment: ReplicaAssignment, furniture: Furniture, pid: int) -> None:
        """Blocks. Raises OSError. The files can be read and no more."""
        for folder, target in zip(furniture.folders, _TARGETS, strict=False):
            mount_into(pid, _seen(folder), target)
        mount_into(pid, self._kept(assignment), CACHE, is_writable=True)

    def as_seen_inside(
        self, assignment: ReplicaAssignment, furniture: Furniture
    ) -> ReplicaAssignment:
        """The same, with the places that the files have in the container."""
        inside = [
            _inside(source, folder, target)
            for source, folder, target in zip(
                _sources(assignment), furniture.folders, _TARGETS, strict=False
            )
        ]
        draft = inside[1] if len(inside) > 1 else None
        return assignment.model_copy(update={"source": inside[0], "draft_source": draft})

    def _kept(self, assignment: ReplicaAssignment) -> Path:
        """The one folder that a container may write: a model's own, so that no other is harmed."""
        name = hashlib.sha256(assignment.model.encode()).hexdigest()[:32]
        folder = self._cache_dir / _FOLDER_OF_KEPT / name
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, USER, USER)
        return folder


def limits_for(assignment: ReplicaAssignment) -> Limits:
    """What its model.yaml asks for."""
    mib = assignment.resources.memory_mib
    threads = assignment.engine.threads
    return Limits(
        memory_bytes=None if mib is None else mib << 20,
        cpus=None if threads is None else float(threads * assignment.engine.tensor_parallel),
    )


def _sources(assignment: ReplicaAssignment) -> list[ResolvedSource]:
    draft = assignment.draft_source
    return [assignment.source] if draft is None else [assignment.source, draft]


def _nowhere(size: int) -> None:
    """No memory of the agent's: files come into the cache."""


def _seen(folder: Path) -> Path:
    """What has to be mounted for the files of a folder to be there, links included."""
    repository = folder.parent.parent
    in_hub_cache = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if in_hub_cache else folder


def _inside(source: ResolvedSource, folder: Path, target: str) -> ResolvedSource:
    """The files were verified when they were fetched: they need not be read again for that."""
    files = tuple(
        file.model_copy(update={"modified_ns": (folder / file.path).stat().st_mtime_ns})
        for file in source.files
    )
    uri = (Path(target) / folder.relative_to(_seen(folder))).as_uri()
    return source.model_copy(update={"uri": uri, "files": files})


def _took(
    stage: Stage,
    began_at: float,
    ended_at: float,
    *,
    size: int | None = None,
    origin: str | None = None,
) -> StageDone:
    return StageDone(
        timing=StageTiming(
            stage=stage,
            started_at=began_at,
            seconds=ended_at - began_at,
            bytes=size,
            source=origin,
        )
    )
