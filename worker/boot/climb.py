"""The cold start in order: files, weights, engine."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infra.contracts.node import ReplicaAssignment
from infra.contracts.revision import ResolvedSource
from infra.contracts.stage import Stage
from infra.sources.port import ModelSource
from worker.boot.ports import Climbed
from worker.boot.stages import StageTimer
from worker.engine.async_engine import AsyncEngine
from worker.engine.engine import Engine
from worker.engine.preload import after_fork
from worker.models.causal_model import CausalModel
from worker.models.config import read_config
from worker.models.pack import Pack
from worker.models.registry import build_model, open_pack
from worker.tokenizer.tokenizer import Tokenizer
from worker.weights.loader import open_weights
from worker.weights.packed_store import PackedStore

# How the bytes of a source's scheme get into this process.
ORIGINS = {"file": "mmap", "hf": "hub", "s3": "s3"}

# What it did not have to load, since its process slept with it.
ASLEEP = "asleep"

MOST_PREPARED = 8
PACKED_FOLDER = "packed"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model with its tokenizer, and for whom it is."""

    recipe: tuple[object, ...]
    model: CausalModel
    tokenizer: Tokenizer


class ModelClimb:
    """Boots a real model; see worker.boot.ports.Climb. `cpus` is the default number of threads.

    A tokenizer takes longer to read than everything else (85 ms for 49,152 tokens, with the GIL
    held), so parked workers read those of the likeliest sources ahead.
    """

    def __init__(self, sources: ModelSource, *, cache_dir: Path, cpus: int) -> None:
        self._sources = sources
        self._cache_dir = cache_dir
        self._cpus = cpus
        self._tokenizers: dict[str, Future[Tokenizer]] = {}  # by source digest, oldest first
        self._reader = ThreadPoolExecutor(1, "tokenizer")
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()  # guards _tokenizers: prepare may still run beside the climb

    def prepare(self, source: ResolvedSource) -> None:
        folder = self._sources.fetch(source, self._cache_dir, lambda _: None)
        self._read_tokenizer(source, folder).result()

    def __call__(self, assignment: ReplicaAssignment, stages: StageTimer) -> Climbed:
        """Raises PlatformError: SourceInvalid for files that changed since they were deployed."""
        after_fork(assignment.engine.threads or self._cpus)
        on_progress = partial(stages.progress, Stage.WEIGHTS)
        folder = self._sources.fetch(assignment.source, self._cache_dir, on_progress)
        stages.part("files")
        pack = None
        if self._loaded is None:
            self._loaded, pack = self._load(folder, assignment, stages)
        else:
            _wake(self._loaded, assignment, stages)
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        engine = Engine(model, tokenizer, assignment.engine)
        engine.warm()
        stages.part("cache")
        settle = None if pack is None else pack.save
        return Climbed(folder, AsyncEngine(engine, tokenizer), tokenizer, settle=settle)

    def sleep(self) -> bool:
        if self._loaded is None:
            return False
        self._loaded.model.to_host()
        return True

    def _load(
        self, folder: Path, assignment: ReplicaAssignment, stages: StageTimer
    ) -> tuple[_Loaded, Pack | None]:
        source, settings = assignment.source, assignment.engine
        on_progress = partial(stages.progress, Stage.WEIGHTS)
        config = read_config(folder)
        store = PackedStore(self._cache_dir / PACKED_FOLDER)
        pack = open_pack(config, settings, store, source_digest=source.digest)
        packed_bytes = 0 if pack is None else pack.found_bytes
        weights = open_weights(folder, on_progress, reads_ahead=not packed_bytes)
        stages.part("map")
        origin = "packed" if packed_bytes else ORIGINS.get(source.uri.partition(":")[0])
        stages.done(Stage.WEIGHTS, source=origin, size=packed_bytes or weights.total_bytes)
        reading = self._read_tokenizer(source, folder)
        model = build_model(config, weights, settings, pack=pack)
        stages.part("model")
        tokenizer = reading.result()
        stages.part("tokenizer")
        self._forget_tokenizers()
        return _Loaded(assignment.recipe, model, tokenizer), pack

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


def _wake(loaded: _Loaded, assignment: ReplicaAssignment, stages: StageTimer) -> None:
    assert loaded.recipe == assignment.recipe, "a sleeper wakes as what it was"
    stages.done(Stage.WEIGHTS, source=ASLEEP)
    loaded.model.to_device()
    stages.part("model")
