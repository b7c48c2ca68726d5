"""Jobs: how long a 202 takes, and how many accepted ones kills and a power cut lose."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import httpx
from rich.console import Console

from benchmarks.durable import accept, disk, kills, power_cut
from tests.support.platform import running_platform

CONCURRENCY = 16


def main() -> None:
    """Prints a line a part; exit code 1 if a job was lost."""
    parser = argparse.ArgumentParser(prog="scripts/bench jobs", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="accepted for the latency")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=5, help="simulated power cuts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = Path(os.environ["FIRSTLIGHT_TEST_MODEL"])  # noqa: TID251 - set by scripts/bench
    environment = {
        k: v
        for k, v in os.environ.items()  # noqa: TID251 - what children inherit
        if not k.startswith("PLATFORM_")
    }
    is_good = True
    if arguments.requests:
        _accept(model, environment, arguments.requests)
    for _ in range(arguments.cuts):
        is_good &= _cut()
    if arguments.kills:
        is_good &= _kill(model, environment, arguments.kills, arguments.seed)
    sys.exit(not is_good)


def _accept(model: Path, environment: dict[str, str], requests: int) -> None:
    """Without a machine the jobs stay where they are, and nothing else runs."""
    _say(f"4 KiB and an fdatasync on this disk: p50 {disk.fsync_p50_s() * 1000:.2f} ms")
    with running_platform(environment | {"PLATFORM_CAPACITY": "none"}) as platform:
        platform.deploy("chat", model)
        url = httpx.URL(platform.url)
        assert url.port is not None
        for concurrency in (1, CONCURRENCY):
            accept.measure(url.host, url.port, concurrency=concurrency, requests=200)
            seen = accept.measure(url.host, url.port, concurrency=concurrency, requests=requests)
            _say(
                f"202 at concurrency {concurrency}: p50 {seen.quantile(0.5) * 1000:.2f} ms, "
                f"p99 {seen.quantile(0.99) * 1000:.2f} ms, {requests / seen.total_s:,.0f}/s"
            )


def _cut() -> bool:
    try:
        accepted, lost = asyncio.run(power_cut.cut(after_s=2))
    except power_cut.NotPermitted as error:
        _say(f"[bold yellow]POWER CUT SKIPPED[/]: {error}")
        return True
    _say(f"power cut: {accepted:,} jobs accepted, {lost} lost")
    return lost == 0 and accepted > 0


def _kill(model: Path, environment: dict[str, str], count: int, seed: int) -> bool:
    verdict = kills.run(model, environment, kills=count, seed=seed)
    _say(
        f"{verdict.kills.total()} kills ({_counts(verdict.kills)}): {len(verdict.accepted)} jobs "
        f"accepted, {len(verdict.lost)} lost, {verdict.double_keys} keys with two jobs; "
        f"{_counts(verdict.states)}; by attempts {_counts(verdict.attempts)}"
    )
    return verdict.is_good


def _counts(counted: "kills.Counter[str] | kills.Counter[int]") -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counted.items()))


def _say(line: str) -> None:
    Console(highlight=False, soft_wrap=True).print(line)


if __name__ == "__main__":
    main()
