"""Requests to replay: traces read from files, and seeded arrivals where there are none."""

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

MODELS: Final = 8  # of each generated kind
_PROMPT_S, _TOKEN_S = 1e-4, 0.02  # seconds a prompt token and an output token take
_DAY_S = 86_400.0


class Request(NamedTuple):
    """When it arrives and how long it takes, in seconds."""

    at: float
    seconds: float


def idle_times(requests: Iterable[Request]) -> list[float]:
    """Between the end of everything before and the next arrival, in order."""
    times, free_at = [], None
    for request in sorted(requests):
        if free_at is not None and request.at > free_at:
            times.append(request.at - free_at)
        free_at = max(free_at or 0.0, request.at + request.seconds)
    return times


def split(requests: Sequence[Request], models: int) -> list[list[Request]]:
    """The requests as if they had been for so many models, few of them popular (Zipf, 1.2)."""
    dice = random.Random(models)
    weights = [1 / rank**1.2 for rank in range(1, models + 1)]
    parts: list[list[Request]] = [[] for _ in range(models)]
    owners = dice.choices(range(models), weights, k=len(requests))
    for owner, request in zip(owners, requests, strict=True):
        parts[owner].append(request)
    return parts


def read_traces(folder: Path) -> dict[str, list[Request]]:
    """The Azure LLM inference traces (CC-BY 4.0, Azure Public Dataset, Splitwise at ISCA 2024) and
    the Mooncake conversations (Apache-2.0, FAST 2025) that the folder has, by file name."""
    azure = {it.stem: _read_azure(it) for it in sorted(folder.glob("AzureLLM*.csv"))}
    mooncake = {it.stem: _read_mooncake(it) for it in sorted(folder.glob("mooncake*.jsonl"))}
    return azure | mooncake


def _read_azure(path: Path) -> list[Request]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        _request((at - times[0]).total_seconds(), row["ContextTokens"], row["GeneratedTokens"])
        for at, row in zip(times, rows, strict=True)
    ]


def _read_mooncake(path: Path) -> list[Request]:
    """Its times are rounded to three seconds."""
    dice = random.Random(0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        _request(
            row["timestamp"] / 1000 + dice.uniform(0, 3), row["input_length"], row["output_length"]
        )
        for row in rows
    ]


def _request(at: float, prompt: str | int, output: str | int) -> Request:
    return Request(at, int(prompt) * _PROMPT_S + int(output) * _TOKEN_S)


def generated(days: float = 7.0, *, seed: int = 0) -> dict[str, list[list[Request]]]:
    """Arrivals of several kinds, MODELS models of each; the same every time for a seed."""
    seeds = range(seed * MODELS, (seed + 1) * MODELS)
    kinds: dict[str, Callable[[random.Random], Iterator[float]]] = {
        "heavy-tailed": lambda dice: _gaps(dice, lambda: 3 * dice.paretovariate(1.1)),
        "diurnal": lambda dice: _diurnal(dice, busy_s=45.0),
        "sessions": lambda dice: _gaps(dice, lambda: _session_gap(dice)),
        "sparse": lambda dice: _gaps(dice, lambda: dice.expovariate(1 / 5400)),
        "steady": lambda dice: _gaps(dice, lambda: dice.expovariate(1 / 200)),
        "every ten minutes": lambda dice: _gaps(dice, lambda: dice.gauss(600, 20)),
    }
    return {
        kind: [_until(arrivals(random.Random(one)), one, days) for one in seeds]
        for kind, arrivals in kinds.items()
    }


def _gaps(dice: random.Random, gap: Callable[[], float]) -> Iterator[float]:
    at = dice.uniform(0, 60)
    while True:
        yield at
        at += max(0.01, gap())


def _session_gap(dice: random.Random) -> float:
    """A user thinks, and after a while goes."""
    return dice.expovariate(1 / 15) if dice.random() < 0.85 else dice.lognormvariate(8, 1)


def _diurnal(dice: random.Random, *, busy_s: float) -> Iterator[float]:
    """Poisson arrivals between 8 and 20 o'clock, a fiftieth of them in between."""
    at = 0.0
    while True:
        is_day = 8 <= at % _DAY_S / 3600 < 20
        at += dice.expovariate(1 / busy_s)
        if is_day or dice.random() < 0.02:
            yield at


def _until(arrivals: Iterator[float], seed: int, days: float) -> list[Request]:
    dice = random.Random(seed + 1000)
    requests = []
    for at in arrivals:
        if at > days * _DAY_S:
            return requests
        requests.append(Request(at, dice.expovariate(1 / 3)))
    return requests
