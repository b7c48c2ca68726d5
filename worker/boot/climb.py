"""The cold start in order: files, weights, engine."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from infra.contracts.base import GpuId
from infra.contracts.node import ReplicaAssignment
from infra.contracts.revision import ResolvedSource
from infra.contracts.stage import Stage
from infra.errors import Invalid, WeightsUnavailable
from infra.paging import cold_bytes
from infra.sources.port import ModelSource, OpenedSource
from infra.sources.staging import WEIGHTS_SUFFIX
from worker.boot.arrival import Arrival
from worker.boot.build import Site, build, threads_for
from worker.boot.followers import ProcessFollowers
from worker.boot.landings import Landings
from worker.boot.model_files import PACKED, ModelFiles
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
    folder: Path
    is_streamed: bool
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
        self._landings = Landings()
        self._is_climbing = threading.Event()

    def prepare(self, source: ResolvedSource) -> None:
        """Weights that are not in the cache are brought there until there is something to climb.

        Then they go on into memory, which is ready for them.
        """

        def make_room(size: int) -> None:
            self._landings.prepare(size)

        folder = self._sources.open(source, self._cache_dir, make_room, self._give_way).folder
        self._landings.prepare(_cold_bytes(source, folder))
        self._read_tokenizer(source, folder).result()

    def _give_way(self, fraction: float) -> None:
        if self._is_climbing.is_set():
            raise WeightsUnavailable("there is something to climb")

    def __call__(
        self, assignment: ReplicaAssignment, stages: StageTimer, gpus: tuple[GpuId, ...]
    ) -> Climbed:
        """Raises PlatformError: SourceInvalid for files that changed since they were deployed."""
        self._is_climbing.set()
        after_fork(threads_for(assignment, self._cpus))
        settle = None
        if self._loaded is None:
            self._loaded, settle = self._load(assignment, stages, gpus)
        else:
            self._wake(self._loaded, assignment, stages)
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        engine = Engine(model, tokenizer, assignment.engine, draft=self._loaded.draft)
        engine.warm()
        stages.part("cache")
        return Climbed(
            self._loaded.folder,
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
        self, assignment: ReplicaAssignment, stages: StageTimer, gpu_ids: tuple[GpuId, ...]
    ) -> tuple[_Loaded, Settle]:
        arrival = Arrival(stages)
        opened = self._open(assignment, arrival)
        stages.part("files")
        if opened.stream is None:
            return self._build(opened, arrival, assignment, stages, gpu_ids)
        try:
            return self._build(opened, arrival, assignment, stages, gpu_ids)
        except BaseException as error:
            with closing(opened.stream) as stream:
                if isinstance(error, Invalid):  # of what was pinned, or of what came instead?
                    stream.finish()
            raise

    def _open(self, assignment: ReplicaAssignment, arrival: Arrival) -> OpenedSource:
        source, draft = assignment.source, assignment.draft_source
        # A draft of the same source is read from the cache: both would wait for one another.
        is_read_twice = draft is not None and draft.digest == source.digest
        return self._sources.open(
            source,
            self._cache_dir,
            _nowhere if is_read_twice else self._landings.take,
            arrival.on_progress,
            is_shared=assignment.engine.tensor_parallel > 1 and not is_read_twice,
        )

    def _build(
        self,
        opened: OpenedSource,
        arrival: Arrival,
        assignment: ReplicaAssignment,
        stages: StageTimer,
        gpu_ids: tuple[GpuId, ...],
    ) -> tuple[_Loaded, Settle]:
        """Of weights that are on their way the stage ends when the last one is here."""
        source, stream, gpus = assignment.source, opened.stream, assignment.resources.gpus
        store = PackedStore(self._cache_dir / PACKED_FOLDER)
        files = ModelFiles.open(
            opened.folder,
            source,
            assignment.engine,
            store,
            arrival.on_progress,
            gpus=gpus,
            stream=stream,
            spare=self._landings.spare() if stream is None else None,
        )
        stages.part("map" if stream is None else "headers")
        draft_files = self._open_draft(assignment, store)
        if draft_files is not None:
            stages.part("draft")
        all_files = [each for each in (files, draft_files) if each is not None]
        end_weights = partial(
            stages.done,
            Stage.WEIGHTS,
            size=sum(each.num_bytes for each in all_files),
        )
        if stream is None:
            end_weights(source=PACKED if files.is_packed else opened.origin)
        reading = self._read_tokenizer(source, opened.folder)
        shared = None if stream is None else stream.shared
        model, followers = build(files, assignment, self._site(assignment, gpu_ids), shared)
        if stream is None:
            stages.part("model")
        else:
            arrival.end(stream, end_weights)
        if gpus:
            _keep_artifacts(self._cache_dir, source, model.kernels.device)
        tokenizer = reading.result()
        stages.part("tokenizer")
        draft = None
        if draft_files is not None:
            draft_files.check_drafts_for(files, tokenizer)
            draft = with_recording(draft_files.build(gpus=gpus))
            stages.part("draft")
        self._forget_tokenizers()
        packs = [each.pack for each in all_files if each.pack is not None]

        def settle(*, now: float) -> None:
            for pack in packs:
                pack.save(now=now)

        return _Loaded(
            recipe=assignment.recipe,
            folder=opened.folder,
            is_streamed=stream is not None,
            model=model,
            draft=draft,
            tokenizer=tokenizer,
            followers=followers,
        ), settle

    def _wake(self, loaded: _Loaded, assignment: ReplicaAssignment, stages: StageTimer) -> None:
        assert loaded.recipe == assignment.recipe, "a sleeper wakes as what it was"
        if not loaded.is_streamed:  # the files that it maps are those that were deployed
            self._sources.fetch(assignment.source, self._cache_dir, lambda _: None)
        stages.part("files")
        stages.done(Stage.WEIGHTS, source=ASLEEP)
        for model in loaded.models:
            model.to_device()
        stages.part("model")

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


def _cold_bytes(source: ResolvedSource, folder: Path) -> int:
    """Of the weights, that a climb would read from the disk; 0 where nobody can tell."""
    names = (file.path for file in source.files if file.path.endswith(WEIGHTS_SUFFIX))
    try:
        return sum(cold_bytes(folder / name) for name in names)
    except OSError:
        return 0


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


def _nowhere(size: int) -> None:
    """Room for nothing: weights are brought into the cache first."""
