"""What the gateway costs beside nginx and vllm-router: one core each side, the same replica."""

import argparse
import asyncio
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.engine_peers.install import NotInstalled, say
from benchmarks.gateway_peers import load
from benchmarks.gateway_peers.gateways import (
    KEY,
    LOAD_CORE,
    NODE_KEY,
    Gateway,
    free_port,
    nginx,
    on_gateway_core,
    until_answering,
    vllm_router,
)
from benchmarks.gateway_peers.node import StandInNode
from benchmarks.gateway_peers.verdicts import Figures, Parked, Slice, figures, verdicts
from tests.support.platform import RunningPlatform, running_platform

CONNECTIONS = 64
CLIMB_S = 3.0
TURNS = 5


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int
    seconds: float
    parked: int


def main() -> None:
    """Prints the table and what of it meets its target; exit code 1 if a request was lost."""
    parser = argparse.ArgumentParser(prog="scripts/bench gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3000, help="requests at one connection")
    parser.add_argument("--seconds", type=float, default=5.0, help="at 64 connections")
    parser.add_argument("--parked", type=int, default=2000, help="requests held at zero replicas")
    arguments = parser.parse_args()
    sizes = Sizes(arguments.rounds, arguments.seconds, arguments.parked)
    if (os.cpu_count() or 1) < 2:
        sys.exit("error: the gateway and its load need a core each")
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    psutil.Process().cpu_affinity([LOAD_CORE])
    model = Path(os.environ["FIRSTLIGHT_TEST_MODEL"])  # noqa: TID251 - set by scripts/bench
    with _stand_in() as upstream, ExitStack() as stack:
        gateways = {"direct": Gateway(upstream, psutil.Process())}
        for name, start in (("nginx", nginx), ("vllm-router", vllm_router)):
            try:
                gateways[name] = stack.enter_context(start(upstream))
            except NotInstalled as error:
                say(f"{name} is MISSING from the table: {error}")
        platform = stack.enter_context(_ours(model))
        port = int(platform.url.rpartition(":")[2])
        gateways["firstlight"] = Gateway(port, psutil.Process(platform.process.pid))
        rows, parked = uvloop.run(_measure(gateways, platform.url, upstream, sizes))
    _show(rows, parked)
    sys.exit(rows["firstlight"].failed > 0 or parked.failed > 0)


@contextmanager
def _ours(model: Path) -> Iterator[RunningPlatform]:
    """A real platform with keys, queue, metrics and trace ids; only its replica is a stand-in."""
    environment = {
        k: v
        for k, v in os.environ.items()  # noqa: TID251 - what children inherit
        if not k.startswith("PLATFORM_")
    }
    ours = {"CAPACITY": "none", "API_KEY": KEY, "NODE_TOKEN": NODE_KEY, "LOG_LEVEL": "warning"}
    environment |= {f"PLATFORM_{name}": value for name, value in ours.items()}
    with ExitStack() as stack:
        with on_gateway_core():
            platform = stack.enter_context(running_platform(environment))
        for name in ("chat", "parked"):
            limits = {"max_queue": 20_000, "max_concurrency": 256}
            platform.deploy(name, model, limits=limits, scaling={"grace": 3600, "max": 1})
        yield platform


async def _measure(
    gateways: dict[str, Gateway], url: str, upstream: int, sizes: Sizes
) -> tuple[dict[str, Figures], Parked]:
    """In turns, so that what else the machine does meanwhile is shared by all."""
    slices: dict[str, list[Slice]] = {name: [] for name in gateways}
    idle_bytes = {name: gateway.pss_bytes() for name, gateway in gateways.items()}
    node = StandInNode(url, NODE_KEY, port=upstream, climb_s=CLIMB_S)
    await node.register()
    serving = asyncio.create_task(node.run())
    try:
        for gateway in gateways.values():
            await until_answering(gateway.port, load.request(gateway.port, KEY))
        gc.collect()
        gc.freeze()
        for turn in range(TURNS):
            for name, gateway in gateways.items():
                say(f"measuring {name}, {turn + 1} of {TURNS}")
                slices[name].append(await _slice(gateway, sizes))
        rows = {
            name: figures(slices[name], idle_bytes[name], gateway.pss_bytes())
            for name, gateway in gateways.items()
        }
        return rows, await _park(gateways["firstlight"], node, sizes.parked)
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def _slice(gateway: Gateway, sizes: Sizes) -> Slice:
    whole = load.request(gateway.port, KEY)
    streaming = load.request(gateway.port, KEY, is_streaming=True)
    seconds = sizes.seconds / TURNS
    await load.run(gateway.port, whole, connections=CONNECTIONS, seconds=0.1)
    alone = await load.run(gateway.port, whole, connections=1, rounds=sizes.rounds // TURNS)
    before = gateway.cpu_s()
    many = await load.run(gateway.port, whole, connections=CONNECTIONS, seconds=seconds)
    between = gateway.cpu_s()
    streams = await load.run(gateway.port, streaming, connections=CONNECTIONS, rounds=1)
    after = gateway.cpu_s()
    return Slice(
        alone_s=alone.seconds,
        requests_per_s=many.answered / seconds,
        request_cpu_s=(between - before) / max(1, many.answered),
        token_cpu_s=(after - between) / max(1, streams.events),
        failed=alone.failed + many.failed + streams.failed,
    )


async def _park(gateway: Gateway, node: StandInNode, count: int) -> Parked:
    """Requests at a model without a replica, all sent before one is ready."""
    sent = load.request(gateway.port, KEY, model="parked")
    before = gateway.own_pss_bytes()
    running = asyncio.create_task(load.run(gateway.port, sent, connections=count, rounds=1))
    await asyncio.sleep(CLIMB_S * 0.8)
    held_bytes = gateway.own_pss_bytes() - before
    seen = await running
    return Parked(count, seen.failed, held_bytes / count, seen.last_at - node.ready_at)


def _show(rows: dict[str, Figures], parked: Parked) -> None:
    table = Table(title=f"chat completions through one core; {CONNECTIONS} streams of 10 ms tokens")
    for column in (
        "",
        "added p50 us",
        "added p99 us",
        "requests/s",
        "CPU us/request",
        "requests/s/core",
        "CPU us/token",
        "PSS idle MB",
        "after MB",
        "failed",
    ):
        table.add_column(column, justify="right" if column else "left")
    direct = rows["direct"]
    for name, row in rows.items():
        is_direct = row is direct
        table.add_row(
            name,
            f"{(row.p50_s - (0 if is_direct else direct.p50_s)) * 1e6:.0f}",
            f"{(row.p99_s - (0 if is_direct else direct.p99_s)) * 1e6:.0f}",
            f"{row.requests_per_s:,.0f}",
            *(
                ("", "", "", "", "")
                if is_direct
                else (
                    f"{row.request_cpu_s * 1e6:.1f}",
                    f"{1 / row.request_cpu_s:,.0f}",
                    f"{row.token_cpu_s * 1e6:.1f}",
                    f"{row.idle_bytes / 1e6:.1f}",
                    f"{row.after_bytes / 1e6:.1f}",
                )
            ),
            str(row.failed),
        )
    table.caption = (
        "direct: its own p50 and p99; the others: what they add to it; "
        f"{TURNS} turns, CPU and rates are medians of them"
    )
    console = Console(width=150)
    console.print(table)
    targets = Table(title="targets")
    for column in ("", "measured", "target", ""):
        targets.add_column(column, justify="right" if column else "left")
    for verdict in verdicts(rows, parked):
        targets.add_row(verdict.name, verdict.measured, verdict.target, verdict.word)
    console.print(targets)


@contextmanager
def _stand_in() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway_peers.stand_in", str(port)]
    process = subprocess.Popen(command)
    try:
        uvloop.run(_until_up(port))
        yield port
    finally:
        process.kill()
        process.wait()


async def _until_up(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return


if __name__ == "__main__":
    main()
