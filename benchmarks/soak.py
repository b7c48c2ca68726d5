"""100,000 requests with random cancels on a tiny random model: nothing may be left of them."""

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from tests.engine.tiny import LetterTokenizer, load_model, make_engine, outputs_of, write_model
from worker.engine.async_engine import AsyncEngine
from worker.engine.engine import Engine
from worker.engine.request import GenerationRequest, SamplingParams

CHECKPOINTS = 10
CONCURRENCY = 64
CANCELLED = 0.3  # of the requests, after a random number of outputs
MOST_GROWTH_BYTES = 16 << 20
_VOCABULARY = 128  # what the tiny tokenizer can spell
_SHARED = [tuple(range(20 + start, 60 + start)) for start in range(4)]  # beginnings to share


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The process with nothing in flight."""

    requests: int
    seconds: float
    memory_bytes: int
    tasks: int
    free_blocks: int
    total_blocks: int


def main() -> None:
    """Prints what was left at each checkpoint and the verdict; exit code 1 if it is bad."""
    parser = argparse.ArgumentParser(prog="scripts/bench soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=900, help="stop after so long")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="bfloat16 runs on the native kernels where there are any, float32 in torch",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "tiny", torch_dtype=arguments.dtype)
        engine = make_engine(load_model(model))
        seen = asyncio.run(soak(engine, requests=arguments.requests, most_s=arguments.seconds))
    show(seen)
    left = verdict(seen)
    Console().print(left or "nothing is left of any of them")
    sys.exit(bool(left))


async def soak(engine: Engine, *, requests: int, most_s: float) -> list[Checkpoint]:
    """Sends the requests in equal parts, and looks around after each."""
    running = AsyncEngine(engine, LetterTokenizer())
    running.start()
    dice = random.Random(0)
    started = time.monotonic()
    seen: list[Checkpoint] = []
    part = -(-requests // CHECKPOINTS)
    for first in range(0, requests, part):
        if time.monotonic() - started > most_s:
            break
        last = min(first + part, requests)
        await _send(running, iter(range(first, last)), dice)
        await _until_idle(running)
        engine.check_integrity()
        gc.collect()
        stats = running.stats
        seen.append(
            Checkpoint(
                last,
                time.monotonic() - started,
                psutil.Process().memory_info().rss,
                len(asyncio.all_tasks()),
                stats.free_blocks,
                stats.total_blocks,
            )
        )
    await running.close()
    return seen


async def _send(engine: AsyncEngine, numbers: Iterator[int], dice: random.Random) -> None:
    async def client() -> None:
        for number in numbers:
            await _one(engine, number, dice)

    async with asyncio.TaskGroup() as clients:
        for _ in range(CONCURRENCY):
            clients.create_task(client())


async def _one(engine: AsyncEngine, number: int, dice: random.Random) -> None:
    """Reads the answer, or leaves before its end."""
    tokens = tuple(dice.randrange(1, _VOCABULARY) for _ in range(dice.randrange(1, 24)))
    prompt = dice.choice(_SHARED) + tokens if dice.random() < 0.5 else tokens
    sampling = SamplingParams(
        max_tokens=dice.randrange(1, 9),
        temperature=dice.choice((0.0, 1.0)),
        stop=dice.choice(((), tuple("aeiou"))),
    )
    leaves_after = dice.randrange(sampling.max_tokens) if dice.random() < CANCELLED else None
    outputs = outputs_of(engine, GenerationRequest(f"soak-{number}", prompt, sampling))
    if leaves_after == 0:
        reading = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    else:
        count = 0
        async for _ in outputs:
            count += 1
            if count == leaves_after:
                break
    await outputs.aclose()


async def _until_idle(engine: AsyncEngine) -> None:
    """The last aborts are on their way to the engine's thread."""
    deadline = time.monotonic() + 10
    while engine.stats.running or engine.stats.waiting:
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(0.01)


def verdict(seen: Sequence[Checkpoint]) -> str:
    """What was left behind; empty if nothing was. The first part warms caches up."""
    first, last = seen[0], seen[-1]
    left = []
    if last.free_blocks != last.total_blocks:
        left.append(f"{last.total_blocks - last.free_blocks} blocks are not free")
    if last.tasks != first.tasks:
        left.append(f"{last.tasks - first.tasks} tasks are left")
    if (growth := last.memory_bytes - first.memory_bytes) > MOST_GROWTH_BYTES:
        left.append(f"memory grew by {growth / 1e6:.1f} MB")
    return ", ".join(left)


def show(seen: Sequence[Checkpoint]) -> None:
    table = Table(title="with nothing in flight")
    for column in ("requests", "seconds", "memory, MB", "tasks", "blocks free"):
        table.add_column(column, justify="right")
    for each in seen:
        table.add_row(
            f"{each.requests:,}",
            f"{each.seconds:.1f}",
            f"{each.memory_bytes / 1e6:.1f}",
            str(each.tasks),
            f"{each.free_blocks} of {each.total_blocks}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
