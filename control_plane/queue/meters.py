"""What is counted of jobs."""

from dataclasses import dataclass

from infra.metrics import Counter, Metrics


@dataclass(frozen=True)
class JobMeters:
    """Counters that only the dispatcher and the courier write."""

    executions: Counter
    duplicates: Counter
    webhooks: Counter

    @classmethod
    def on(cls, metrics: Metrics) -> "JobMeters":
        """Registers them."""
        return cls(
            executions=metrics.counter(
                "job_executions_total",
                "Executions of jobs by what came of them: answered, retry, postpone, give-up.",
                ("model", "outcome"),
            ),
            duplicates=metrics.counter(
                "job_duplicate_executions_total",
                "Executions that ended after another one's answer was taken, or were taken over.",
                ("model",),
            ),
            webhooks=metrics.counter(
                "job_webhook_calls_total", "Calls of webhooks: delivered or failed.", ("outcome",)
            ),
        )
