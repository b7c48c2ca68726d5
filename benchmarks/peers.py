"""What nodes that share chunks save the origin: four of them, together, beside one alone."""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peer_nodes.namespaces import machines
from benchmarks.peer_nodes.origin import Origin
from infra.redis import find_server
from snapshotter.index.chunk_table import Chunk, ChunkTable

CHUNK_BYTES = 1 << 20
REDIS_PORT = 6399  # on the bridge's own address


@dataclass(frozen=True, slots=True)
class Case:
    """A start of some nodes; `liar` and `dying` are places among them."""

    name: str
    nodes: int
    shares: bool = True
    liar: int | None = None
    dying: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """`slowest_s` and `is_right` are of the nodes that lived."""

    case: Case
    slowest_s: float
    egress: float
    most_uploaded: float
    cpu_s: float
    is_right: bool


CASES = (
    Case("one node alone", 1, shares=False),
    Case("four, each from the origin", 4, shares=False),
    Case("four that share", 4),
    Case("four, one gives wrong bytes", 4, liar=2),
    Case("four, one dies half-way", 4, dying=1),
)


def main() -> None:
    """Prints the table and its verdicts; exit code 1 if a byte was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/bench peers", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the blob")
    parser.add_argument("--origin", type=float, default=60, help="MB/s of the origin")
    parser.add_argument("--peer", type=float, default=120, help="MB/s of each node's uploads")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.exit("error: network namespaces need root and iproute2\nhint: run it as root")
    outcomes = asyncio.run(_measured(arguments))
    _print(outcomes)
    sys.exit(0 if all(it.is_right for it in outcomes) else 1)


async def _measured(arguments: argparse.Namespace) -> list[Outcome]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host, nodes = stack.enter_context(machines(max(case.nodes for case in CASES)))
        _start_redis(folder, host, stack)
        return [await _run(case, arguments, folder, host, nodes) for case in CASES]


def _start_redis(folder: Path, host: str, stack: ExitStack) -> None:
    redis = subprocess.Popen(
        [find_server(), "--bind", host, "--port", f"{REDIS_PORT}", "--protected-mode", "no"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    stack.callback(redis.wait)
    stack.callback(redis.kill)


async def _run(
    case: Case, arguments: argparse.Namespace, folder: Path, host: str, nodes: list[tuple[str, str]]
) -> Outcome:
    data = os.urandom(arguments.megabytes << 20)
    table = _table(data)
    origin = Origin(host, data, arguments.origin * 1e6)
    orders = {
        "digest": f"sha256:{sha256(data).hexdigest()}",
        "table": table.packed.hex(),
        "origin": origin.url,
        "redis": f"redis://{host}:{REDIS_PORT}/0",
        "shares": case.shares,
        "upload_bytes_per_s": arguments.peer * 1e6,
    }
    whole_s = len(data) / (arguments.origin * 1e6)
    started = []
    for place, (namespace, address) in enumerate(nodes[: case.nodes]):
        own = {
            "node": f"node-{place}",
            "host": address,
            "folder": str(folder / case.name / str(place)),
            "lies": place == case.liar,
            "dies_after_s": whole_s / 2 if place == case.dying else None,
        }
        (folder / case.name / str(place)).mkdir(parents=True)
        started.append(await _start(namespace, orders | own))
    for process in started:
        await _heard(process)
    origin.given_bytes = 0
    for process in started:
        _tell(process)
    living = [it for place, it in enumerate(started) if place != case.dying]
    reports = [await _heard(process) for process in living]
    for process in living:
        _tell(process)
    for process in started:
        await process.wait()
    origin.close()
    shutil.rmtree(folder / case.name)
    return Outcome(
        case,
        slowest_s=max(it["seconds"] for it in reports),
        egress=origin.given_bytes / len(data),
        most_uploaded=max(it["uploaded"] for it in reports) / len(data),
        cpu_s=sum(it["cpu_s"] for it in reports),
        is_right=all(it["is_right"] for it in reports),
    )


async def _start(namespace: str, orders: dict[str, Any]) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", namespace, sys.executable, "-m", "benchmarks.peer_nodes.node"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(orders).encode() + b"\n")
    return process


async def _heard(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        sys.exit("error: a node ended before it was done")
    heard: dict[str, Any] = json.loads(line)
    return heard


def _tell(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


def _table(data: bytes) -> ChunkTable:
    parts = (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
    return ChunkTable(
        [
            Chunk(
                index,
                index * CHUNK_BYTES,
                len(part),
                sha256(part).digest(),
                index * CHUNK_BYTES,
                len(part),
            )
            for index, part in enumerate(parts)
        ]
    )


def _print(outcomes: list[Outcome]) -> None:
    alone, shared = outcomes[0], outcomes[2]
    console = Console(width=120)
    table = Table(
        "", "slowest s", "of one alone", "origin egress", "most uploaded", "CPU s", "bytes"
    )
    for it in outcomes:
        table.add_row(
            it.case.name,
            f"{it.slowest_s:.2f}",
            f"{it.slowest_s / alone.slowest_s:.2f} x",
            f"{it.egress:.2f} x",
            f"{it.most_uploaded:.2f} x",
            f"{it.cpu_s:.1f}",
            "right" if it.is_right else "WRONG",
        )
    console.print(table)
    for name, measured, most in (
        ("origin egress of four that share", shared.egress, 1.1),
        ("slowest of four that share / one alone", shared.slowest_s / alone.slowest_s, 1.4),
    ):
        verdict = "met" if measured <= most else "NOT MET"
        console.print(f"{name}: {measured:.2f} (aim ≤ {most}): {verdict}")


if __name__ == "__main__":
    main()
