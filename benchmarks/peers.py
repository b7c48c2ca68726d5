"""What nodes that share chunks save the origin: four of them, together, beside one alone."""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
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

from benchmarks.measure.report import Target, targets_table
from benchmarks.peer_nodes.load import LOADS, TOKEN
from benchmarks.peer_nodes.namespaces import machines
from benchmarks.peer_nodes.origin import Origin
from infra.redis import find_server
from infra.sources.piece_digests import digests_of
from snapshotter.blob.weights.proven import RedisProvenWeights
from snapshotter.index.chunk_table import Chunk, ChunkTable

CHUNK_BYTES = 1 << 20
REDIS_PORT = 6399  # on the bridge's own address


@dataclass(frozen=True, slots=True)
class Case:
    """A start of some nodes; `liar` and `dying` are places among them. `is_proven`: a node had
    proven the weights before, so that the digests of their pieces are known.
    """

    name: str
    nodes: int = 4
    shares: bool = True
    liar: int | None = None
    dying: int | None = None
    redis_falls_silent: bool = False  # half-way; it keeps its connections
    is_proven: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """`slowest_s` and `is_right` are of the nodes that lived."""

    slowest_s: float
    egress: float
    most_uploaded: float
    cpu_s: float
    is_right: bool


ALONE = Case("one node alone", nodes=1, shares=False)
SHARING = Case("four that share")
FIRST = Case("four that share, weights nobody has proven", is_proven=False)
CASES = (
    ALONE,
    Case("four, each from the origin", shares=False),
    SHARING,
    FIRST,
    Case("four, one gives wrong bytes", liar=2),
    Case("four, one dies half-way", dying=1),
    Case("four, Redis falls silent half-way", redis_falls_silent=True),
)

Outcomes = dict[tuple[str, Case], list[Outcome]]


def main() -> None:
    """Prints a table for each kind of blob, and verdicts; exit code 1 if a byte was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/bench peers", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the blob")
    parser.add_argument("--origin", type=float, default=60, help="MB/s of the origin")
    parser.add_argument("--peer", type=float, default=120, help="MB/s of each node's uploads")
    parser.add_argument("--rounds", type=int, default=3, help="of each case")
    parser.add_argument("--of", nargs="+", choices=LOADS, default=tuple(LOADS), help="which blobs")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.exit("error: network namespaces need root and iproute2\nhint: run it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # namespaces go, or the next run hangs
    outcomes = asyncio.run(_measured(arguments))
    _print(outcomes, arguments.of)
    sys.exit(0 if all(it.is_right for them in outcomes.values() for it in them) else 1)


async def _measured(arguments: argparse.Namespace) -> Outcomes:
    outcomes: Outcomes = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host, nodes = stack.enter_context(machines(max(case.nodes for case in CASES)))
        redis = _start_redis(folder, host, stack)
        for _ in range(arguments.rounds):
            for what in arguments.of:
                for case in CASES:
                    if case is FIRST and what != "weights":
                        continue
                    outcome = await _run(case, what, arguments, folder, host, nodes, redis)
                    outcomes.setdefault((what, case), []).append(outcome)
                    sys.stderr.write(f"{what}, {case.name}: {outcome}\n")
    return outcomes


def _start_redis(folder: Path, host: str, stack: ExitStack) -> "subprocess.Popen[bytes]":
    redis = subprocess.Popen(
        [find_server(), "--bind", host, "--port", f"{REDIS_PORT}", "--protected-mode", "no"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    stack.callback(redis.wait)
    stack.callback(redis.kill)
    return redis


async def _run(
    case: Case,
    what: str,
    arguments: argparse.Namespace,
    folder: Path,
    host: str,
    nodes: list[tuple[str, str]],
    server: "subprocess.Popen[bytes]",
) -> Outcome:
    data = os.urandom(arguments.megabytes << 20)
    digest = f"sha256:{sha256(data).hexdigest()}"
    origin = Origin(host, data, arguments.origin * 1e6)
    redis = f"redis://{host}:{REDIS_PORT}/0"
    if what == "weights" and case.is_proven:
        RedisProvenWeights(redis, token=TOKEN).add(digest, digests_of(memoryview(data)))
    orders = {
        "what": what,
        "digest": digest,
        "size": len(data),
        "table": _table(data).packed.hex(),
        "origin": origin.url,
        "redis": redis,
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
    if case.redis_falls_silent:
        await asyncio.sleep(whole_s / 2)
        server.send_signal(signal.SIGSTOP)
    living = [it for place, it in enumerate(started) if place != case.dying]
    reports = [await _heard(process) for process in living]
    for process in living:
        _tell(process)
    for process in started:
        await process.wait()
    server.send_signal(signal.SIGCONT)
    origin.close()
    shutil.rmtree(folder / case.name)
    return Outcome(
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


def _print(outcomes: Outcomes, blobs: list[str]) -> None:
    console = Console(width=120)
    rows: list[Target] = []
    for what in blobs:
        found = {case: them for (kind, case), them in outcomes.items() if kind == what}
        alone_s = statistics.median(it.slowest_s for it in found[ALONE])
        table = Table(
            *(what, "slowest s", "of one alone", "origin egress", "most uploaded", "CPU s", "bytes")
        )
        for case, them in found.items():
            slowest_s, egress, uploaded, cpu_s = (
                statistics.median(values)
                for values in zip(
                    *((it.slowest_s, it.egress, it.most_uploaded, it.cpu_s) for it in them),
                    strict=True,
                )
            )
            table.add_row(
                case.name,
                f"{slowest_s:.2f}",
                f"{slowest_s / alone_s:.2f} x",
                f"{egress:.2f} x",
                f"{uploaded:.2f} x",
                f"{cpu_s:.1f}",
                "right" if all(it.is_right for it in them) else "WRONG",
            )
            if case in {SHARING, FIRST}:
                rows += [
                    Target(f"{what}, {case.name}: origin egress", 1.1, egress, True),
                    Target(f"{what}: the slowest, of one alone", 1.4, slowest_s / alone_s, True),
                ]
        console.print(table)
    console.print(targets_table(rows))


if __name__ == "__main__":
    main()
