import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.contracts.node import Failure
from infra.contracts.revision import ResolvedSource, SourceFile
from infra.contracts.stage import Stage, StageProgress, StageTiming
from infra.contracts.worker_link import FromWorker, Progress, StageDone
from infra.errors import DependencyMissing, SourceInvalid, SourceUnavailable, UnsupportedModel
from worker.boot.failure import failure_of
from worker.boot.source import ModelFiles, locate
from worker.boot.stages import StageTimer


@dataclass
class HandClock:
    at: float = 100.0

    def now(self) -> float:
        return self.at


def resolved(folder: Path, *, uri: str | None = None) -> ResolvedSource:
    files = tuple(
        SourceFile(
            path=path.name,
            size=path.stat().st_size,
            digest=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
        )
        for path in sorted(folder.iterdir())
    )
    return ResolvedSource(uri=uri or f"file://{folder}", digest="sha256:0", files=files)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model with spaces"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


def refuse_fetch(*_: object) -> Path:
    raise AssertionError("a folder is not fetched")


def located(source: ResolvedSource) -> ModelFiles:
    return locate(source, cache_dir=Path("/cache"), fetch=refuse_fetch, on_progress=lambda _: None)


def test_a_folder_is_used_in_place(model: Path) -> None:
    escaped = str(model).replace(" ", "%20")

    assert located(resolved(model)) == ModelFiles(model, "mmap")
    assert located(resolved(model, uri=f"file://{escaped}")) == ModelFiles(model, "mmap")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text('{"model_type": "other"}'),
        lambda folder: (folder / "config.json").write_text('{"model_type": "llamb"}'),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(101)),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
    ids=["other size", "same size", "grown", "gone"],
)
def test_a_folder_that_changed_since_it_was_deployed_is_refused_for_good(model, change) -> None:
    source = resolved(model)
    change(model)

    with pytest.raises(SourceInvalid) as caught:
        located(source)

    assert failure_of(caught.value).is_permanent


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_path_out_of_the_folder_is_refused(model: Path, path: str) -> None:
    source = ResolvedSource(
        uri=f"file://{model}", digest="sha256:0", files=(SourceFile(path=path, size=1),)
    )

    with pytest.raises(SourceInvalid):
        located(source)


@pytest.mark.parametrize(("uri", "origin"), [("hf://a/b@c", "hub"), ("s3://a/b", "s3")])
def test_other_sources_are_fetched_into_the_cache_with_progress(
    model: Path, uri: str, origin: str
) -> None:
    fractions: list[float] = []

    def fetch(source: ResolvedSource, cache_dir: Path, on_progress) -> Path:
        on_progress(0.5)
        return cache_dir / source.uri[:2]

    files = locate(
        resolved(model, uri=uri),
        cache_dir=Path("/cache"),
        fetch=fetch,
        on_progress=fractions.append,
    )

    assert files == ModelFiles(Path("/cache") / uri[:2], origin)
    assert fractions == [0.5]


def test_stages_begin_where_the_last_one_ended() -> None:
    clock, told = HandClock(), Told()
    timer = StageTimer(clock, told.say)

    clock.at = 101.0
    timer.done(Stage.RUNTIME)
    clock.at = 103.5
    timer.done(Stage.WEIGHTS, source="mmap", size=7)

    assert told.messages == [
        StageDone(timing=StageTiming(stage=Stage.RUNTIME, started_at=100, seconds=1)),
        StageDone(
            timing=StageTiming(
                stage=Stage.WEIGHTS, started_at=101, seconds=2.5, source="mmap", bytes=7
            )
        ),
    ]


def test_progress_is_told_a_few_times_a_second_at_most_and_stays_in_bounds() -> None:
    clock, told = HandClock(), Told()
    timer = StageTimer(clock, told.say)

    for fraction in (-0.5, 0.1, 0.2):
        timer.progress(Stage.WEIGHTS, fraction)
    clock.at += 0.2
    timer.progress(Stage.WEIGHTS, 1.5)

    assert told.messages == [
        Progress(progress=StageProgress(stage=Stage.WEIGHTS, fraction=fraction))
        for fraction in (0, 1)
    ]


@dataclass
class Told:
    messages: list[FromWorker] = field(default_factory=list)

    def say(self, message: FromWorker) -> None:
        self.messages.append(message)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (UnsupportedModel("no"), Failure(code="unsupported-model", detail="no", is_permanent=True)),
        (
            DependencyMissing("no"),
            Failure(code="dependency-missing", detail="no", is_permanent=True),
        ),
        (
            SourceUnavailable("no"),
            Failure(code="source-unavailable", detail="no", is_permanent=False),
        ),
        (
            MemoryError(),
            Failure(code="replica-failed", detail="MemoryError", is_permanent=False),
        ),
        (
            OSError("full"),
            Failure(code="replica-failed", detail="OSError: full", is_permanent=False),
        ),
    ],
)
def test_what_an_error_of_the_climb_means(error: Exception, failure: Failure) -> None:
    assert failure_of(error) == failure


def test_a_detail_is_bounded() -> None:
    assert len(failure_of(RuntimeError("x" * 100_000)).detail) == 2000
