"""How long requests wait for a machine of a simulated EC2, and what standby costs."""

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from benchmarks.measure.arrivals import read_traces
from benchmarks.measure.standby_machines import Account, Arrival, Policy, bursts, on_models, serve
from infra.virtual_time import run_virtual

POLICIES = (
    Policy("none"),
    Policy("one stopped", stopped=1),
    Policy("our decider, 4 at most", most=4),
    Policy("always on", idle_s=1e9),
)

# g6.xlarge, Linux, us-east-1, on demand; 100 GB of gp3 that a stopped one keeps. USD an hour.
RUNNING_USD, STOPPED_USD = 0.8048, 100 * 0.08 / 730


def main() -> None:
    """Prints a table a workload."""
    parser = argparse.ArgumentParser(prog="scripts/bench capacity", description=__doc__)
    parser.add_argument("--arrivals", type=int, default=1000)
    parser.add_argument("--traces", type=Path, help="folder of traces to replay, too")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    for name, arrivals in workloads(arguments.arrivals, arguments.traces).items():
        show(name, measured(arrivals))


def workloads(count: int, traces: Path | None) -> dict[str, list[Arrival]]:
    """Arrivals by what they are."""
    found = {"bursts of 1 to 12 models, one in ten minutes": bursts(count)}
    for name, requests in ({} if traces is None else read_traces(traces)).items():
        found[name] = on_models(requests[:count])
    return found


def measured(arrivals: Sequence[Arrival]) -> dict[str, Account]:
    """Every policy on the same arrivals and the same dice of the cloud."""
    with ProcessPoolExecutor(max_workers=2) as processes:
        accounts = processes.map(_run, [(arrivals, policy) for policy in POLICIES])
        return {it.name: account for it, account in zip(POLICIES, accounts, strict=True)}


def _run(case: tuple[Sequence[Arrival], Policy]) -> Account:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return run_virtual(serve(*case))


def show(workload: str, accounts: Mapping[str, Account]) -> None:
    """Prints what every policy did; `waited` is the share of requests for which a machine had to
    come, `more` what the policy costs beyond having no standby."""
    requests = len(next(iter(accounts.values())).waits_s)
    table = Table(title=f"from request to registered node, {requests:,} requests, {workload}")
    for column in (
        "standby",
        "p50, s",
        "p99, s",
        "waited",
        "p50 of those",
        "p99 of those",
        "refused",
    ):
        table.add_column(column, justify="left" if column == "standby" else "right")
    for column in ("runs, h a day", "stopped, h a day", "USD a day", "more"):
        table.add_column(column, justify="right")
    least = usd_a_day(next(iter(accounts.values())))
    for name, it in accounts.items():
        days, usd = it.seconds / 86400, usd_a_day(it)
        waits = [it.quantile(part, of_waits=only) for only in (False, True) for part in (0.5, 0.99)]
        p50, p99, p50_of_waits, p99_of_waits = (f"{seconds:.1f}" for seconds in waits)
        hours = (f"{it.running_s / 3600 / days:.1f}", f"{it.stopped_s / 3600 / days:.1f}")
        row = (p50, p99, f"{it.waited:.0%}", p50_of_waits, p99_of_waits, str(it.refused), *hours)
        table.add_row(name, *row, f"{usd:.2f}", f"{usd - least:+.2f}")
    Console(width=140).print(table)


def usd_a_day(account: Account) -> float:
    """At the prices above."""
    days = account.seconds / 86400
    usd = account.running_s * RUNNING_USD + account.stopped_s * STOPPED_USD
    return usd / 3600 / days


if __name__ == "__main__":
    main()
