"""What the activator counts."""

from collections.abc import Sequence
from dataclasses import dataclass

from infra.contracts.base import ModelName
from infra.metrics import Counter, Histogram, Metrics

_COLD_START_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)


@dataclass(frozen=True)
class ActivatorMeters:
    """Counters that only the activator writes."""

    cold_start_seconds: Histogram
    retries: Counter

    @classmethod
    def on(cls, metrics: Metrics) -> "ActivatorMeters":
        """Registers them."""
        return cls(
            cold_start_seconds=metrics.histogram(
                "cold_start_seconds",
                "Seconds of a cold request's wait for its first token, by stage.",
                ("model", "stage"),
                buckets=_COLD_START_BUCKETS_S,
            ),
            retries=metrics.counter(
                "retries_total",
                "Requests sent to another replica after one failed them.",
                ("model",),
            ),
        )

    def observe(self, model: ModelName, seconds: Sequence[tuple[str, float]]) -> None:
        """Counts one cold request."""
        for stage, taken in seconds:
            self.cold_start_seconds.observe(model, stage, value=taken)
