"""The cold start in order: files, weights, engine."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from infra.contracts.base import GpuId
from infra.contracts.node import ReplicaAssignment
from infra.contracts.revision import ResolvedSource
from infra.contracts.stage import Stage
from infra.sources.port import ModelSource
from worker.boot.build import Site, build, threads_for
from worker.boot.followers import ProcessFollowers
from worker.boot.model_files import ModelFiles
from worker.boot.ports import Climbed, Settle
from worker.boot.ranks import Rank
from worker.boot.stages import StageTimer
from worker.engine.async_engine import AsyncEngine
from worker.engine.engine import Engine
from worker.engine.preload import after_fork
from worker.kernels.artifacts import artifacts_folder, keep_artifacts_in
from worker.models.causal_model import CausalModel
from worker.models.registry import with_recording
from worker.tokenizer.tokenizer import Tokenizer
from worker.weights.packed_store import PackedStore

# What it did not have to load, since its process slept with it.
ASLEEP = "asleep"

MOST_PREPARED = 8
PACKED_FOLDER = "packed"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model with its tokenizer and, where one makes guesses, a draft model; and for whom.

    `followers` compute the model with this process, where there are any.
    """

    recipe: tuple[object, ...]
    model: CausalModel
    draft: CausalModel | None
    tokenizer: Tokenizer
    followers: ProcessFollowers | None

    @property
    def models(self) -> tuple[CausalModel, ...]:
        return (self.model,) if self.draft is None else (self.model, self.draft)


class ModelClimb:
    """Boots a real model; see worker.boot.ports.Climb. `cpus` is the default number of threads,
    `ranks` the further processes of a model that several compute.

    A tokenizer takes longer to read than everything else (85 ms for 49,152 tokens, with the GIL
    held), so parked workers read those of the likeliest sources ahead.
    """

    def __init__(
        self, sources: ModelSource, *, cache_dir: Path, cpus: int, ranks: tuple[Rank, ...] = ()
    ) -> None:
        self._sources = sources
        self._cache_dir = cache_dir
        self._cpus = cpus
        self._ranks = ranks
        self._tokenizers: dict[str, Future[Tokenizer]] = {}  # by source digest, oldest first
        self._reader = ThreadPoolExecutor(1, "tokenizer")
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()  # guards _tokenizers: prepare may still run beside the climb

    def prepare(self, source: ResolvedSource) -> None:
        folder = self._sources.fetch(source, self._cache_dir, lambda _: None)
        self._read_tokenizer(source, folder).result()

    def __call__(
        self, assignment: ReplicaAssignment, stages: StageTimer, gpus: tuple[GpuId, ...]
    ) -> Climbed:
        """Raises PlatformError: SourceInvalid for files that changed since they were deployed."""
        after_fork(threads_for(assignment, self._cpus))
        on_progress = partial(stages.progress, Stage.WEIGHTS)
        folder = self._sources.fetch(assignment.source, self._cache_dir, on_progress)
        stages.part("files")
        settle = None
        if self._loaded is None:
            self._loaded, settle = self._load(folder, assignment, stages, gpus)
        else:
            _wake(self._loaded, assignment, stages)
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        engine = Engine(model, tokenizer, assignment.engine, draft=self._loaded.draft)
        engine.warm()
        stages.part("cache")
        return Climbed(
            folder,
            AsyncEngine(engine, tokenizer),
            tokenizer,
            settle=settle,
            followers=self._loaded.followers,
        )

    def sleep(self) -> bool:
        if self._loaded is None:
            return False
        for model in self._loaded.models:
            model.to_host()
        if self._loaded.followers is not None:
            self._loaded.followers.until_asleep()
        return True

    def _load(
        self,
        folder: Path,
        assignment: ReplicaAssignment,
        stages: StageTimer,
        gpu_ids: tuple[GpuId, ...],
    ) -> tuple[_Loaded, Settle]:
        source = assignment.source
        on_progress = partial(stages.progress, Stage.WEIGHTS)
        store = PackedStore(self._cache_dir / PACKED_FOLDER)
        gpus = assignment.resources.gpus
        files = ModelFiles.open(folder, source, assignment.engine, store, on_progress, gpus=gpus)
        stages.part("map")
        draft_files = self._open_draft(assignment, store)
        if draft_files is not None:
            stages.part("draft")
        opened = [each for each in (files, draft_files) if each is not None]
        stages.done(Stage.WEIGHTS, source=files.origin, size=sum(each.num_bytes for each in opened))
        reading = self._read_tokenizer(source, folder)
        model, followers = build(files, assignment, self._site(assignment, gpu_ids))
        if gpus:
            _keep_artifacts(self._cache_dir, source, model.kernels.device)
        stages.part("model")
        tokenizer = reading.result()
        stages.part("tokenizer")
        draft = None
        if draft_files is not None:
            draft_files.check_drafts_for(files, tokenizer)
            draft = with_recording(draft_files.build(gpus=gpus))
            stages.part("draft")
        self._forget_tokenizers()

        def settle(*, now: float) -> None:
            for each in opened:
                each.settle(now=now)

        return _Loaded(assignment.recipe, model, draft, tokenizer, followers), settle

    def _open_draft(self, assignment: ReplicaAssignment, store: PackedStore) -> ModelFiles | None:
        source, settings = assignment.draft_source, assignment.engine
        if source is None:
            return None
        folder = self._sources.fetch(source, self._cache_dir, lambda _: None)
        changes = {"quantization": settings.draft_quantization, "tensor_parallel": 1}
        settings = settings.model_copy(update=changes)
        gpus = assignment.resources.gpus
        return ModelFiles.open(folder, source, settings, store, lambda _: None, gpus=gpus)

    def _site(self, assignment: ReplicaAssignment, gpu_ids: tuple[GpuId, ...]) -> Site:
        packed = self._cache_dir / PACKED_FOLDER
        return Site(packed, threads_for(assignment, self._cpus), self._ranks, gpu_ids)

    def _read_tokenizer(self, source: ResolvedSource, folder: Path) -> Future[Tokenizer]:
        """The source's tokenizer, being read since now or since it was prepared."""
        with self._lock:
            known = self._tokenizers.get(source.digest)
            if known is not None and not (known.done() and known.exception()):
                return known
            while len(self._tokenizers) >= MOST_PREPARED:
                del self._tokenizers[next(iter(self._tokenizers))]
            reading = self._reader.submit(Tokenizer.load, folder)
            self._tokenizers[source.digest] = reading
            return reading

    def _forget_tokenizers(self) -> None:
        with self._lock:
            self._tokenizers.clear()
            self._reader.shutdown(wait=False)


def _keep_artifacts(cache_dir: Path, source: ResolvedSource, device: torch.device) -> None:
    """Whatever is compiled for the model on a GPU, which happens in its first steps."""
    keep_artifacts_in(
        artifacts_folder(
            cache_dir,
            source_digest=source.digest,
            device=torch.cuda.get_device_name(device),
            version=torch.__version__,
        )
    )


def _wake(loaded: _Loaded, assignment: ReplicaAssignment, stages: StageTimer) -> None:
    assert loaded.recipe == assignment.recipe, "a sleeper wakes as what it was"
    stages.done(Stage.WEIGHTS, source=ASLEEP)
    for model in loaded.models:
        model.to_device()
    stages.part("model")
