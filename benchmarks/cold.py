"""Seconds from request to first token at zero replicas, beside this machine's own floors."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.support.platform import RunningPlatform, running_platform

PROMPT = "Give me a short introduction to large language models."
FLOORS = {
    "python starts": "pass",
    "import torch": "import torch",
    "worker imports (torch, server, engine)": (
        "from worker.engine.preload import preload; preload()"
    ),
}


@dataclass(frozen=True)
class Sample:
    """One request: what the client saw and, when it was cold, what the platform reports."""

    ttft_s: float
    report: dict[str, Any] | None


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench cold", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="cold requests a row")
    rounds = parser.parse_args().rounds
    model = Path(os.environ["FIRSTLIGHT_TEST_MODEL"])  # noqa: TID251 - set by scripts/bench
    environment = {
        k: v
        for k, v in os.environ.items()  # noqa: TID251 - what children inherit
        if not k.startswith("PLATFORM_")
    }

    with running_platform(environment) as platform:
        platform.deploy("parked", model, scaling={"grace": 0.5, "standby": 1, "sleep": 0})
        platform.until_standby()
        parked = [cold(platform, "parked", platform.until_standby) for _ in range(rounds)]
        warm = [first_token(platform, "parked") for _ in range(rounds)]
        platform.until_idle("parked")
        platform.client.delete("/v1/models/parked")
    with running_platform(environment) as platform:
        platform.deploy("asleep", model, scaling={"grace": 0.5})
        first_token(platform, "asleep")
        asleep = [cold(platform, "asleep", platform.until_asleep) for _ in range(rounds)]
    with running_platform(environment) as platform:
        platform.deploy("spawned", model, scaling={"grace": 0.5, "standby": 0, "sleep": 0})
        spawned = [cold(platform, "spawned", lambda: None) for _ in range(rounds)]

    show(
        {
            "asleep on weights": asleep,
            "standby on runtime": parked,
            "no standby": spawned,
            "warm": warm,
        }
    )
    show_floors(rounds)


def cold(platform: RunningPlatform, name: str, prepare: Callable[[], None]) -> Sample:
    """One request after the model has reached zero."""
    platform.until_idle(name)
    prepare()
    sample = first_token(platform, name)
    return Sample(sample.ttft_s, platform.cold_starts(name, last=1)[0])


def first_token(platform: RunningPlatform, name: str) -> Sample:
    """Seconds until the first byte of a streamed answer, as a client sees it."""
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "stream": True}
    started = time.perf_counter()
    with platform.client.stream("POST", f"/v1/models/{name}/invoke", json=body) as response:
        assert response.status_code == 200
        chunks = response.iter_raw()
        next(chunks)
        ttft_s = time.perf_counter() - started
        for _ in chunks:
            continue
    return Sample(ttft_s, None)


def show(rows: dict[str, Sequence[Sample]]) -> None:
    """Median milliseconds a stage; the control plane's share is what it adds to the climb."""
    stages = ("queue", "provision", "runtime", "weights", "engine", "prefill")
    table = Table(title="request → first token, median ms")
    for column in ("", "client TTFT", "best", "worst", *stages, "unattributed"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("worst unattributed", justify="right")
    table.add_column("control plane", justify="right")
    for name, samples in rows.items():
        seen = [sample.ttft_s for sample in samples]
        cells = [milliseconds(f(seen)) for f in (statistics.median, min, max)]
        reports = [sample.report for sample in samples if sample.report]
        if reports:
            by_stage = [seconds_by_stage(report) for report in reports]
            cells += [
                milliseconds(statistics.median(stage[s] for stage in by_stage)) for s in stages
            ]
            lost = [report["unattributed_s"] for report in reports]
            ours = [
                stage["queue"] + stage["provision"] + report["unattributed_s"]
                for stage, report in zip(by_stage, reports, strict=True)
            ]
            cells += [milliseconds(f(lost)) for f in (statistics.median, max)]
            cells.append(milliseconds(statistics.median(ours)))
        table.add_row(name, *cells)
    Console(width=180).print(table)


def seconds_by_stage(report: dict[str, Any]) -> dict[str, float]:
    """Seconds a stage; a stage that took no part counts as 0."""
    totals = dict.fromkeys(
        ("queue", "provision", "image", "runtime", "weights", "engine", "prefill"), 0.0
    )
    for share in report["shares"]:
        totals[share["stage"]] += share["seconds"]
    return totals


def show_floors(rounds: int) -> None:
    """What this machine needs for the same without any platform."""
    table = Table(title="this machine's floors, ms")
    for column in ("", "median", "best"):
        table.add_column(column, justify="right" if column else "left")
    for name, code in FLOORS.items():
        seconds = [timed([sys.executable, "-c", code]) for _ in range(min(rounds, 5))]
        table.add_row(name, *(milliseconds(f(seconds)) for f in (statistics.median, min)))
    Console(width=180).print(table)


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


if __name__ == "__main__":
    main()
