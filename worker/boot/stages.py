"""Stage timings without gaps: each stage begins where the last one ended."""

from collections.abc import Callable

from infra.clock import Clock
from infra.contracts.stage import Stage, StagePart, StageProgress, StageTiming
from infra.contracts.worker_link import FromWorker, Progress, StageDone

PROGRESS_EVERY_S = 0.1


class StageTimer:
    """Times one climb and tells of it; the first stage begins when the timer is made."""

    def __init__(self, clock: Clock, tell: Callable[[FromWorker], None]) -> None:
        self._clock = clock
        self._tell = tell
        self._began_at = clock.now()
        self._told_at = 0.0
        self._parts: list[StagePart] = []
        self._part_began_at = self._began_at

    def part(self, name: str, *, at: float | None = None) -> None:
        """A part of the present stage ends now, or has ended; it began where the last one ended."""
        now = self._now(at)
        seconds = max(0.0, now - self._part_began_at)
        self._parts.append(StagePart(name=name, seconds=seconds))
        self._part_began_at = now

    def now(self) -> float:
        """For what ends a part or a stage in another thread."""
        return self._clock.now()

    def done(
        self,
        stage: Stage,
        *,
        source: str | None = None,
        size: int | None = None,
        at: float | None = None,
    ) -> None:
        """That stage ends now, or has ended, and the next one begins then; `size` in bytes."""
        now = self._now(at)
        timing = StageTiming(
            stage=stage,
            started_at=self._began_at,
            seconds=max(0.0, now - self._began_at),
            bytes=size,
            source=source,
            parts=tuple(self._parts),
        )
        self._began_at = self._part_began_at = now
        self._parts = []
        self._tell(StageDone(timing=timing))

    def progress(self, stage: Stage, fraction: float) -> None:
        """The present stage has come so far; told a few times a second at most."""
        now = self._clock.now()
        if now - self._told_at < PROGRESS_EVERY_S:
            return
        self._told_at = now
        bounded = min(1.0, max(0.0, fraction))
        self._tell(Progress(progress=StageProgress(stage=stage, fraction=bounded)))

    def _now(self, at: float | None) -> float:
        """Never before what has ended already."""
        return self._clock.now() if at is None else max(at, self._part_began_at)
