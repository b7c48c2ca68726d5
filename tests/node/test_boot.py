from dataclasses import dataclass, field

import pytest

from infra.contracts.node import Failure
from infra.contracts.stage import Stage, StagePart, StageProgress, StageTiming
from infra.contracts.worker_link import FromWorker, Progress, StageDone
from infra.errors import (
    DependencyMissing,
    SourceUnavailable,
    UnsupportedModel,
    WeightsUnavailable,
)
from worker.boot.failure import failure_of
from worker.boot.stages import StageTimer


@dataclass
class HandClock:
    at: float = 100.0

    def now(self) -> float:
        return self.at


def test_stages_begin_where_the_last_one_ended() -> None:
    clock, told = HandClock(), Told()
    timer = StageTimer(clock, told.say)

    clock.at = 101.0
    timer.done(Stage.RUNTIME)
    clock.at = 102.0
    timer.part("files")
    clock.at = 103.5
    timer.part("map")
    timer.done(Stage.WEIGHTS, source="mmap", size=7)

    assert told.messages == [
        StageDone(timing=StageTiming(stage=Stage.RUNTIME, started_at=100, seconds=1)),
        StageDone(
            timing=StageTiming(
                stage=Stage.WEIGHTS,
                started_at=101,
                seconds=2.5,
                source="mmap",
                bytes=7,
                parts=(
                    StagePart(name="files", seconds=1.0),
                    StagePart(name="map", seconds=1.5),
                ),
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
            WeightsUnavailable("no", hint="ask them"),
            Failure(code="weights-unavailable", detail="no", is_permanent=False, hint="ask them"),
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
