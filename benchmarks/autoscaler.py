"""What an autoscaler's tick takes with many models, and what keeping idle replicas costs."""

# ruff: noqa: E402 - what is compiled is used, as `platform up` does, before it is imported

from control_plane.compiled import library

# What a test imports of it must not change what other tests run over.
IS_COMPILED = __name__ == "__main__" and library.use()

import argparse
import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.measure.arrivals import generated, idle_times, read_traces, split
from benchmarks.measure.ticks import FleetShape, Ticks, measure_ticks
from control_plane.autoscaler.keep_alive import KeepAlive, cost_s

COLD_S = 22.7  # the median load of a base model in production (GenTD26)
PENALTIES_S = (0, 120, 600)
FIXED_S = {
    "RunPod 5 s": 5,
    "Modal 60 s": 60,
    "Knative 90 s": 90,
    "beta9 180 s": 180,
    "KEDA 300 s": 300,
    "Ray 600 s": 600,
    "Baseten 900 s": 900,
    "Hugging Face 1 h": 3600,
}
MOST_TICK_S, MOST_RATIO = 0.050, 2.0


def main() -> None:
    """Prints both tables; exit code 1 if a figure is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench autoscaler", description=__doc__)
    parser.add_argument("--traces", type=Path, help="folder of traces to replay, too")
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=100_000)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    ticks: dict[str, Ticks] = {}
    for name, busy in (("all busy", 1.0), ("a tenth busy, the others idle", 0.1)):
        fleet = FleetShape(arguments.models, arguments.replicas, busy)
        ticks |= {f"{name}: {phase}": it for phase, it in asyncio.run(measure_ticks(fleet)).items()}
    show_ticks(ticks, arguments.models, arguments.replicas)
    worst = show_costs(workloads(arguments.traces))
    sys.exit(not show_verdicts(ticks, worst))


def show_verdicts(ticks: Mapping[str, Ticks], worst: float) -> bool:
    """Prints every target beside what was measured; whether all are met."""
    table = Table(title="targets")
    for column in ("", "measured", "target", " "):
        table.add_column(column, justify="right" if column.strip() else "left")
    slow = {name: it.quantile(0.99) for name, it in ticks.items()}
    for name, seconds in slow.items():
        row = f"99 of 100 ticks, {name}, ms", f"{seconds * 1000:.1f}", f"<= {MOST_TICK_S * 1000:g}"
        table.add_row(*row, "met" if seconds <= MOST_TICK_S else "NOT MET")
    row = "cost / clairvoyant's, worst model at any price", f"{worst:.3f}", f"<= {MOST_RATIO:g}"
    table.add_row(*row, "met" if worst <= MOST_RATIO else "NOT MET")
    Console(width=120).print(table)
    return max(slow.values()) <= MOST_TICK_S and worst <= MOST_RATIO


# -- the tick --------------------------------------------------------------------------------------


def show_ticks(ticks: Mapping[str, Ticks], models: int, replicas: int) -> None:
    """`held` is for how long at most a request that came during a tick had to wait for it, `late`
    how long at most a decision that no request waits for was put off."""
    how = "compiled" if IS_COMPILED else "interpreted"
    table = Table(
        title=f"a tick in ms, {how}, {models:,} models and {replicas:,} replicas (p99 <= 50)"
    )
    for column in ("fleet", "ticks", "p50", "p99", "max", "held", "late"):
        table.add_column(column, justify="right" if column != "fleet" else "left")
    for name, it in ticks.items():
        times = (it.quantile(0.5), it.quantile(0.99), max(it.seconds), it.held_s, it.late_s)
        row = [f"{seconds * 1000:.1f}" for seconds in times]
        table.add_row(name, str(len(it.seconds)), *row)
    Console(width=120).print(table)


# -- keeping ---------------------------------------------------------------------------------------


def workloads(traces: Path | None) -> dict[str, list[list[float]]]:
    """Idle times by workload and model."""
    found = {kind: [idle_times(model) for model in models] for kind, models in generated().items()}
    for name, requests in ({} if traces is None else read_traces(traces)).items():
        found[name] = [idle_times(requests)]
        for models in (64, 400):
            parts = split(requests, models)
            found[f"{name} / {models}"] = [idle_times(part) for part in parts]
    return {name: models for name, models in found.items() if sum(map(len, models)) >= 10}


def learnt_cost_s(model: Sequence[float], cold_cost_s: float) -> float:
    """What `grace: auto` costs over a model's first cold start and idle times."""
    keep_alive, cost = KeepAlive(), cold_cost_s
    for idle_s in model:
        grace_s = keep_alive.grace_s(cold_cost_s)
        cost += idle_s if idle_s <= grace_s else grace_s + cold_cost_s
        keep_alive.settle(idle_s, grace_s=grace_s, cold_cost_s=cold_cost_s)
    return cost


def just_too_late(cold_cost_s: float, *, times: int = 1000) -> list[list[float]]:
    """Idle times of clients who know the grace of `grace: auto`, some models: they come just when
    the replica has gone, one of them every time, others let it earn trust before."""
    models = []
    for seed in range(8):
        dice, keep_alive = random.Random(seed), KeepAlive()
        models.append(model := list[float]())
        for _ in range(times):
            grace_s = keep_alive.grace_s(cold_cost_s)
            is_late = dice.random() < 1 / (1 + seed)
            idle_s = grace_s + 1e-3 if is_late else dice.uniform(0, grace_s)
            model.append(idle_s)
            keep_alive.settle(idle_s, grace_s=grace_s, cold_cost_s=cold_cost_s)
    return models


def show_costs(found: Mapping[str, Sequence[Sequence[float]]]) -> float:
    """Prints a table a price; gives the worst multiple of the clairvoyant, of any one model."""
    worst = 0.0
    for penalty_s in PENALTIES_S:
        cold_cost_s = COLD_S + penalty_s
        table = Table(
            title=f"idle and cold time, as multiples of the clairvoyant's: a cold start of "
            f"{COLD_S} s, penalty {penalty_s}"
        )
        for column in ("workload", *FIXED_S, "T = K", "auto", "worst model"):
            table.add_column(column, justify="left" if column == "workload" else "right")
        late = {"just after the grace": just_too_late(cold_cost_s)}
        for name, models in {**found, **late}.items():
            best = [cold_cost_s + sum(min(it, cold_cost_s) for it in model) for model in models]
            learnt = [learnt_cost_s(model, cold_cost_s) for model in models]
            ratios = [ours / least for ours, least in zip(learnt, best, strict=True)]
            worst = max([worst, *ratios])
            fixed = [
                sum(cold_cost_s + cost_s(sorted(it), grace_s, cold_cost_s) for it in models)
                for grace_s in (*FIXED_S.values(), cold_cost_s)
            ]
            costs = [*fixed, sum(learnt)]
            row = [f"{cost / sum(best):.2f}" for cost in costs]
            table.add_row(name, *row, f"{max(ratios):.2f}")
        Console(width=180).print(table)
    return worst


if __name__ == "__main__":
    main()
