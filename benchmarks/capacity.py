"""How long requests wait for a machine of a simulated EC2, and what standby costs."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.measure.arrivals import MODELS, Request, generated, read_traces, split
from benchmarks.measure.standby_machines import AGAIN_S, GRACE_S, Account, Policy, serve
from control_plane.capacity.simulated.cloud import CloudTemper
from infra.virtual_time import run_virtual

Models = Sequence[Sequence[Request]]

POLICIES = (
    Policy("none"),
    Policy("one stopped", stopped=1),
    Policy("decider, 0 to 4", most=4),
    Policy("the same, cold_penalty 1200", most=4, cold_penalty=1200),
    Policy("always on", idle_s=1e9),
)

# g6.xlarge, Linux, us-east-1, on demand; 100 GB of gp3 that a stopped one keeps. USD an hour.
RUNNING_USD, STOPPED_USD = 0.8048, 100 * 0.08 / 730
TEMPER = CloudTemper()
# The other two have many more requests, and take minutes each.
KINDS = ("sparse", "every ten minutes", "sessions", "steady")

ASSUMED = " ".join((
    f"{MODELS} models that need a GPU each, at zero after {GRACE_S} s without a request. Arrivals:",
    "benchmarks/measure/arrivals.py, the same as of `scripts/bench autoscaler`; they take 3 s in",
    "the mean, and none depends on those of another model. Traces are split among the models, by",
    "Zipf's law, and scaled to a day. Waits are for a machine: from request to registered node,",
    f"without a replica's own start. A launch takes {sum(TEMPER.launch_s):.1f} s in the mean, as",
    f"others measured on EC2; all else of the cloud is assumed: {sum(TEMPER.start_s):.0f} s for a",
    f"start from standby, {TEMPER.stop_s:.0f} s for a stop, how launches and starts spread",
    f"(lognormal, sigma {TEMPER.spread:g} in each of {len(TEMPER.launch_s)} parts), that",
    f"{TEMPER.no_capacity:.0%} of launches and {TEMPER.not_started:.0%} of starts find no machine,",
    f"that {TEMPER.throttled:.0%} of calls are throttled. A client that is refused comes again",
    f"after {AGAIN_S:g} s. Machines end when they have idled for {POLICIES[0].idle_s:.0f} s,",
    f"but with `always on`. Prices: a g6.xlarge on demand, {RUNNING_USD:g} USD an hour; a",
    f"stopped one's 100 GB of gp3, {STOPPED_USD:.4f} USD an hour.",
))  # fmt: skip


class Case(NamedTuple):
    """One run: a workload under a policy, with the dice of a seed."""

    workload: str
    policy: Policy
    models: Models
    seed: int


def main() -> None:
    """Prints what each policy does to each workload."""
    parser = argparse.ArgumentParser(prog="scripts/bench capacity", description=__doc__)
    parser.add_argument("--days", type=float, default=1.0, help="of arrivals (%(default)g)")
    parser.add_argument("--seeds", type=int, default=3, help="of arrivals and cloud (%(default)d)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(generated(0)), default=KINDS)
    parser.add_argument("--traces", type=Path, help="folder of traces to replay, too")
    arguments = parser.parse_args()
    cases = [
        *cases_of(arguments.kinds, arguments.days, arguments.seeds),
        *cases_of_traces(arguments.traces, arguments.seeds),
    ]
    show(measured(cases), arguments.days, arguments.seeds)


def cases_of(kinds: Iterable[str], days: float, seeds: int) -> list[Case]:
    """Every kind of generated arrivals under every policy, each seed's own."""
    arrivals = [generated(days, seed=seed) for seed in range(seeds)]
    return [
        Case(kind, policy, arrivals[seed][kind], seed)
        for kind, policy, seed in product(kinds, POLICIES, range(seeds))
    ]


def cases_of_traces(folder: Path | None, seeds: int) -> list[Case]:
    """The same of traces, as if their requests were for several models, few of them popular."""
    traces = {} if folder is None else read_traces(folder)
    return [
        Case(name, policy, split(requests, MODELS), seed)
        for (name, requests), policy, seed in product(traces.items(), POLICIES, range(seeds))
    ]


def measured(cases: Sequence[Case]) -> dict[str, dict[str, list[Account]]]:
    """By workload and policy, an account of each seed."""
    found: dict[str, dict[str, list[Account]]] = {}
    with ProcessPoolExecutor(max_workers=2) as processes:
        for case, account in zip(cases, processes.map(_run, cases), strict=True):
            policies = found.setdefault(case.workload, {})
            policies.setdefault(case.policy.name, []).append(account)
    return found


def _run(case: Case) -> Account:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return run_virtual(serve(case.models, case.policy, seed=case.seed))


def show(workloads: Mapping[str, Mapping[str, Sequence[Account]]], days: float, seeds: int) -> None:
    """Prints what every policy did; `more` is what it costs beyond having no standby. Of several
    seeds the least and the most are shown."""
    table = Table(
        title=f"waiting for a machine, {days:g} days, least and most of {seeds} seeds",
        caption=ASSUMED,
        caption_justify="left",
    )
    table.add_column("workload", overflow="fold")
    table.add_column("standby")
    for column in ("requests", "waited", "p99 of all, s", "p50 of waits, s", "p99 of waits, s"):
        table.add_column(column, justify="right")
    for column in ("stopped, h a day", "USD a day", "more"):
        table.add_column(column, justify="right")
    for workload, policies in workloads.items():
        least = [usd_a_day(it) for it in next(iter(policies.values()))]
        for place, (policy, accounts) in enumerate(policies.items()):
            usd = [usd_a_day(it) for it in accounts]
            table.add_row(
                "" if place else workload,
                policy,
                _range([len(it.waits_s) for it in accounts], ",d"),
                _range([it.waited for it in accounts], ".0%"),
                _range([it.quantile(0.99) for it in accounts], ".1f"),
                _range([it.quantile(0.5, of_waits=True) for it in accounts], ".1f"),
                _range([it.quantile(0.99, of_waits=True) for it in accounts], ".1f"),
                _range([it.stopped_s / 3600 / _days(it) for it in accounts], ".1f"),
                _range(usd, ".2f"),
                _range([one - other for one, other in zip(usd, least, strict=True)], "+.2f"),
                end_section=place == len(policies) - 1,
            )
    Console(width=max(160, Console().width)).print(table)


def _range(values: Sequence[float], form: str) -> str:
    """The least and the most, once where they look the same."""
    ends = [format(it, form) for it in (min(values), max(values))]
    return "…".join(dict.fromkeys(ends))


def usd_a_day(account: Account) -> float:
    """At the prices above."""
    usd = account.running_s * RUNNING_USD + account.stopped_s * STOPPED_USD
    return usd / 3600 / _days(account)


def _days(account: Account) -> float:
    return account.seconds / 86400


if __name__ == "__main__":
    main()
