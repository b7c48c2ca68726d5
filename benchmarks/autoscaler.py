"""What an autoscaler's tick takes with many models, and what keeping idle replicas costs."""

# ruff: noqa: E402 - what is compiled is used, as `platform up` does, before it is imported

from control_plane.compiled import library

# What a test imports of it must not change what other tests run over.
IS_COMPILED = __name__ == "__main__" and library.use()

import argparse
import asyncio
import gc
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.measure.arrivals import generated, idle_times, read_traces, split
from control_plane.autoscaler.demand_table import DemandTable
from control_plane.autoscaler.keep_alive import KeepAlive, cost_s
from control_plane.autoscaler.loop import Autoscaler
from control_plane.capacity.port import NoMachines
from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.resolver import KnownSources
from control_plane.deployments.service import Deployments
from control_plane.fleet.machines import Machines
from control_plane.fleet.node import Node
from control_plane.fleet.reconciler import Reconciler
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.node import ReplicaReport
from infra.contracts.revision import ReplicaState, Revision
from infra.contracts.stage import Rung
from infra.supervise import TaskSet
from tests.fleet.makers import SOURCE, a_registration, a_source, a_spec, some_facts

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
    ticks = {
        name: asyncio.run(measure_ticks(arguments.models, arguments.replicas, busy=busy))
        for name, busy in (("every model busy", 1.0), ("a tenth busy, the others idle", 0.1))
    }
    show_ticks(ticks, arguments.models, arguments.replicas)
    worst = show_costs(workloads(arguments.traces))
    sys.exit(not show_verdicts(ticks, worst))


def show_verdicts(ticks: Mapping[str, Sequence[float]], worst: float) -> bool:
    """Prints every target beside what was measured; whether all are met."""
    table = Table(title="targets")
    for column in ("", "measured", "target", " "):
        table.add_column(column, justify="right" if column.strip() else "left")
    medians = {name: statistics.median(seconds) for name, seconds in ticks.items()}
    for name, median_s in medians.items():
        row = f"a tick, {name}, ms", f"{median_s * 1000:.1f}", f"<= {MOST_TICK_S * 1000:g}"
        table.add_row(*row, "met" if median_s <= MOST_TICK_S else "NOT MET")
    row = "cost / clairvoyant's, worst model at any price", f"{worst:.3f}", f"<= {MOST_RATIO:g}"
    table.add_row(*row, "met" if worst <= MOST_RATIO else "NOT MET")
    Console().print(table)
    return max(medians.values()) <= MOST_TICK_S and worst <= MOST_RATIO


# -- the tick --------------------------------------------------------------------------------------


class _Clock:
    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at


async def measure_ticks(models: int, replicas: int, *, busy: float, ticks: int = 75) -> list[float]:
    """Seconds of each tick over a fleet that serves; the windows are full at the last ones.

    `busy` models are asked for at every tick, about as much as their replicas carry; the others
    keep their replicas and are not asked for.
    """
    clock, tasks, dice = _Clock(), TaskSet(), random.Random(0)
    deployments = Deployments(
        MemoryDeploymentStore(), KnownSources({SOURCE: (a_source(), some_facts())})
    )
    fleet, demand = Fleet(), DemandTable(clock)
    machines = Machines(NoMachines(), fleet, clock=clock, tasks=tasks)
    reconciler = Reconciler(fleet, machines, clock=clock, token=lambda _: "t")
    is_set_up = False
    autoscaler = Autoscaler(
        deployments, fleet, reconciler, clock=clock, is_leading=lambda: is_set_up
    )
    autoscaler.watch(demand)
    each, asked = replicas // models, int(models * busy)
    scaling = {"max": each + 4, "target_concurrency": 8}
    idle = {**scaling, "min": each}
    revisions = [
        await deployments.deploy(
            a_spec(f"m{number}", scaling=scaling if number < asked else idle), now=clock.now()
        )
        for number in range(models)
    ]
    for node in range(max(1, replicas // 1000)):
        fleet.join(_node(f"n{node}", clock.now()))
    for number, revision in enumerate(revisions):
        _serve(fleet, revision, each, f"n{number * each // 1000}", clock.now())
    is_set_up = True
    at_once = each * 8 - 4
    gc.freeze()  # as control_plane.process does when it has started
    gc.set_threshold(20_000, 20, 100)
    seconds = []
    for tick in range(ticks):
        for number in range(asked):
            meter = demand.meter(revisions[number].name)
            for _ in range(at_once if tick == 0 else 1):  # one comes, another one goes
                meter.arrive(now=clock.now())
                meter.dispatch(now=clock.now())
            if tick:
                meter.leave(was_in_flight=True, now=clock.now())
        clock.at += dice.uniform(0.99, 1.01)
        began = time.perf_counter()
        autoscaler.tick(clock.now())
        seconds.append(time.perf_counter() - began)
    reconciler.close()
    await tasks.close()
    standing = {reconciler.desired(revision.name) for revision in revisions}
    assert standing == {each}, "nothing was to change"
    return seconds[-10:]


def _node(name: str, now: float) -> Node:
    registration = a_registration(name, memory_bytes=1 << 40)
    return Node.registered(registration, version=1, lease_s=1e9, now=now)


def _serve(fleet: Fleet, revision: Revision, count: int, node: str, now: float) -> None:
    for number in range(count):
        replica_id = ReplicaId(f"{revision.model}-{number}")
        fleet.assign(
            Replica(
                replica_id=replica_id,
                revision=revision,
                node_id=NodeId(node),
                token="t",
                wanted_at=now,
                created_at=now,
                since=now,
                is_adopted=True,
            )
        )
        report = ReplicaReport(
            replica_id=replica_id,
            revision=revision.name,
            state=ReplicaState.READY,
            from_rung=Rung.NODE,
            host="127.0.0.1",
            port=1,
        )
        fleet.hear(NodeId(node), report, now=now)


def show_ticks(ticks: Mapping[str, Sequence[float]], models: int, replicas: int) -> None:
    how = "compiled" if IS_COMPILED else "interpreted"
    table = Table(title=f"a tick, {how}, {models:,} models and {replicas:,} replicas (<= 50 ms)")
    for column in ("fleet", "median, ms", "slowest, ms"):
        table.add_column(column, justify="right" if column != "fleet" else "left")
    for name, seconds in ticks.items():
        median, slowest = statistics.median(seconds), max(seconds)
        table.add_row(name, f"{median * 1000:.1f}", f"{slowest * 1000:.1f}")
    Console().print(table)


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
        for name, models in found.items():
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
