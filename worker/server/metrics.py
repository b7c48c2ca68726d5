"""The engine's state in Prometheus's text format (version 0.0.4)."""

from worker.engine.stats import EngineStats

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "firstlight_replica"


def exposition(stats: EngineStats, *, in_flight: int) -> bytes:
    """All metrics of a replica."""
    gauges = {
        "requests_in_flight": in_flight,
        "sequences_running": stats.running,
        "sequences_waiting": stats.waiting,
        "kv_blocks_free": stats.free_blocks,
        "kv_blocks": stats.total_blocks,
    }
    counters = {
        "steps_total": stats.steps,
        "prompt_tokens_total": stats.prompt_tokens,
        "generated_tokens_total": stats.generated_tokens,
        "preemptions_total": stats.preemptions,
        "cached_prompt_tokens_total": stats.cached_prompt_tokens,
        "prefix_queries_total": stats.prefix_queries,
        "prefix_hits_total": stats.prefix_hits,
        "guessed_tokens_total": stats.guessed_tokens,
        "accepted_tokens_total": stats.accepted_tokens,
    }
    lines = [_metric(name, "gauge", value) for name, value in gauges.items()]
    lines += [_metric(name, "counter", value) for name, value in counters.items()]
    return "".join(lines).encode()


def _metric(name: str, kind: str, value: int) -> str:
    return f"# TYPE {_PREFIX}_{name} {kind}\n{_PREFIX}_{name} {value}\n"
