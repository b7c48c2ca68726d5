"""When the last byte of a model's weights came, as whichever thread brought it saw it."""

from typing import Protocol

from infra.contracts.stage import Stage
from infra.sources.port import WeightStream
from worker.boot.stages import StageTimer


class EndWeights(Protocol):
    def __call__(self, *, at: float, source: str) -> None:
        """The stage `weights` ended then; where they came from."""


class Arrival:
    """Tells the stage's progress, and where weights and model were made side by side its end."""

    def __init__(self, stages: StageTimer) -> None:
        self._stages = stages
        self._at: float | None = None

    def on_progress(self, fraction: float) -> None:
        if fraction >= 1.0 and self._at is None:
            self._at = self._stages.now()
        self._stages.progress(Stage.WEIGHTS, fraction)

    def end(self, stream: WeightStream, end_weights: EndWeights) -> None:
        """The model is built. Waits for the proof that it is what was pinned; raises as that."""
        if self._at is None:  # not every byte was needed
            stream.finish()
        assert self._at is not None, "every byte is there"
        self._stages.part("stream", at=self._at)
        end_weights(at=self._at, source=stream.origin)
        self._stages.part("model")
        stream.finish()
        self._stages.part("proof")
