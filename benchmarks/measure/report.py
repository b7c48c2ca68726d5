"""Samples become medians, ratios and verdicts on the targets; no engine is touched here."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

OURS = "firstlight"
PLAIN = "firstlight without guesses"  # as peers run, who guess nothing of what follows
FORMATS = ("bf16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Metric:
    """One kind of measurement; `scale` makes the unit of the stored value readable."""

    key: str
    title: str
    lower_is_better: bool = False
    scale: float = 1.0
    digits: int = 1
    peers_key: str | None = None  # what peers are compared by, where it is not `key`


def _milliseconds(key: str, title: str) -> Metric:
    return Metric(key, f"{title}, ms", lower_is_better=True, scale=1000)


METRICS = (
    _milliseconds("tpot", "a token, one stream"),
    Metric("tpot/plain", "the same, without guesses, ms", True, 1000, peers_key="tpot"),
    Metric("mbu/plain", "MBU of that, %", scale=100, digits=0, peers_key="mbu"),
    *(
        Metric(f"throughput/{streams}/128", f"tokens/s, {streams} streams, 128 in", digits=0)
        for streams in (1, 8, 16, 32)
    ),
    Metric("throughput/32/189", "tokens/s, 32 streams, 189 in", digits=0),
    Metric("prefill", "prefill tokens/s, 1,500 in", digits=0),
    Metric("mfu", "MFU of prefill, %", scale=100, digits=0),
    _milliseconds("prefix/cold", "first token, 1,027 in"),
    _milliseconds("prefix/warm", "the same, beginning shared"),
    _milliseconds("gap/median", "median gap beside long prompts"),
    _milliseconds("gap/p99", "p99 gap beside long prompts"),
    _milliseconds("gap/worst", "longest gap beside long prompts"),
    Metric("pss", "memory (PSS), MB", lower_is_better=True, scale=1e-6, digits=0),
    Metric("ready", "start to ready, s", lower_is_better=True),
)


@dataclass(slots=True)
class Results:
    """Every sample, and what went wrong."""

    samples: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, metric: str, number_format: str, engine: str, value: float) -> None:
        self.samples.setdefault((metric, number_format, engine), []).append(value)

    def median(self, metric: str, number_format: str, engine: str = OURS) -> float | None:
        values = self.samples.get((metric, number_format, engine))
        return statistics.median(values) if values else None

    def peers(self, metric: str, number_format: str) -> dict[str, float]:
        """The other engines' medians."""
        return {
            engine: statistics.median(values)
            for (key, kind, engine), values in self.samples.items()
            if (key, kind) == (metric, number_format) and engine != OURS
        }

    def ratio(
        self,
        metric: str,
        number_format: str,
        *,
        lower_is_better: bool,
        peers_metric: str | None = None,
    ) -> float | None:
        """Our median over that of the best peer, in `peers_metric` where it is another."""
        ours = self.median(metric, number_format)
        peers = self.peers(peers_metric or metric, number_format)
        if ours is None or not peers:
            return None
        return ours / (min if lower_is_better else max)(peers.values())

    def as_json(self) -> dict[str, Any]:
        rows = [
            {"metric": metric, "format": kind, "engine": engine, "values": values}
            for (metric, kind, engine), values in self.samples.items()
        ]
        return {"samples": rows, "remarks": self.remarks}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Results":
        results = cls(remarks=list(data["remarks"]))
        for row in data["samples"]:
            results.samples[row["metric"], row["format"], row["engine"]] = list(row["values"])
        return results


@dataclass(frozen=True, slots=True)
class Target:
    """What the project promised itself; `value` None: not measured in this run."""

    what: str
    limit: float
    value: float | None
    is_most: bool  # the limit is the largest that will do, else the smallest
    unit: str = "x"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        is_met = self.value <= self.limit if self.is_most else self.value >= self.limit
        return "met" if is_met else "missed"

    @property
    def aim(self) -> str:
        return f"{'≤' if self.is_most else '≥'} {self.limit:g} {self.unit}"

    @property
    def shown(self) -> str:
        return "-" if self.value is None else f"{self.value:.3g} {self.unit}"


def targets(results: Results) -> list[Target]:
    """The figures of the engine's issue, in its order."""
    return list(_targets(results))


def _targets(results: Results) -> Iterator[Target]:
    for kind, limit in (("bf16", 0.8), ("int8", 0.65), ("int4", 0.5)):
        ratio = results.ratio("tpot", kind, lower_is_better=True)
        yield Target(f"a token of one stream, {kind}, of the best peer's", limit, ratio, True)
        ratio = results.ratio("tpot/plain", kind, lower_is_better=True, peers_metric="tpot")
        yield Target(f"the same without guesses, {kind}", limit, ratio, True)
    used = results.median("mbu/plain", "bf16")  # a guess that was right reads no weights
    yield Target("MBU of one stream without guesses, bf16", 0.85, used, False, "")
    for kind, limit in (("bf16", 1.3), ("int8", 1.5)):
        for streams in (8, 16, 32):
            ratio = results.ratio(f"throughput/{streams}/128", kind, lower_is_better=False)
            what = f"tokens/s at {streams} streams, {kind}, of the best peer's"
            yield Target(what, limit, ratio, False)
    for kind in ("bf16", "int8"):
        what = f"p99 gap beside long prompts, {kind}, of its median"
        yield Target(what, 3, _quotient(results, "gap/p99", "gap/median", kind), True)
    for kind in ("bf16", "int8"):
        ratio = results.ratio("prefill", kind, lower_is_better=False)
        yield Target(f"prefill, {kind}, of the best peer's", 1, ratio, False)
    warm = _times(results.median("prefix/warm", "bf16"), 1000)
    yield Target("first token after a shared beginning of 1,027, bf16", 40, warm, True, "ms")
    for kind in FORMATS:
        guided = results.median("guided/cost", kind)
        yield Target(f"a token of guided JSON, {kind}, of free text's", 1.05, guided, True)
        guided = results.median("guided/cost/plain", kind)
        yield Target(f"the same without guesses, guided, {kind}", 1.05, guided, True)
    for kind in FORMATS:
        copying = results.median("speculation/copying", kind)
        yield Target(f"n-gram speculation where answers copy, {kind}", 1.5, copying, False)
        elsewhere = results.median("speculation/elsewhere", kind)
        yield Target(f"n-gram speculation elsewhere, {kind}", 0.95, elsewhere, False)
        for how in ("greedy", "sampled"):
            value = results.median(f"draft/{how}", kind)
            yield Target(f"a draft model of its own in 4 bits, {how}, {kind}", 0.95, value, False)
    for kind in FORMATS:
        excess = _times(results.median("memory/excess", kind), 1e-6)
        yield Target(f"memory over weights and KV, {kind}", 400, excess, True, "MB")
    for way, what, limit in (("fork", "standby", 80), ("spawn", "nothing", 1300)):
        for kind in FORMATS:
            first = _times(results.median(f"coldstart/{way}", kind), 1000)
            yield Target(f"first token from {what}, {kind}", limit, first, True, "ms")


def _quotient(results: Results, above: str, below: str, kind: str) -> float | None:
    top, bottom = results.median(above, kind), results.median(below, kind)
    return None if top is None or bottom is None else top / bottom


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def engines_table(results: Results, engines: Sequence[str]) -> Table:
    """A row a metric and format, a column an engine; ours beside the best of the others."""
    table = Table(title="median (best) of the rounds")
    table.add_column("")
    table.add_column("format")
    for engine in (OURS, *engines, "ours / best peer"):
        table.add_column(engine, justify="right")
    for metric in METRICS:
        for kind in FORMATS:
            cells = [_cell(results, metric, kind, engine) for engine in (OURS, *engines)]
            if cells[0] or (metric.peers_key is None and any(cells)):
                ratio = results.ratio(
                    metric.key,
                    kind,
                    lower_is_better=metric.lower_is_better,
                    peers_metric=metric.peers_key,
                )
                cells.append("" if ratio is None else f"{ratio:.2f}")
                table.add_row(metric.title, kind, *cells)
    return table


def _cell(results: Results, metric: Metric, kind: str, engine: str) -> str:
    key = metric.key if engine == OURS else metric.peers_key or metric.key
    values = results.samples.get((key, kind, engine))
    if not values:
        return ""
    best = min(values) if metric.lower_is_better else max(values)
    shown = [value * metric.scale for value in (statistics.median(values), best)]
    return f"{shown[0]:.{metric.digits}f} ({shown[1]:.{metric.digits}f})"


def targets_table(rows: Iterable[Target]) -> Table:
    """Aim, value and verdict of each."""
    table = Table(title="targets")
    for column in ("", "aim", "measured", "verdict"):
        table.add_column(column, justify="left" if column in {"", "verdict"} else "right")
    for row in rows:
        table.add_row(row.what, row.aim, row.shown, row.verdict)
    return table


def as_markdown(table: Table) -> str:
    """The same table for a text."""
    columns = [list(map(str, column.cells)) for column in table.columns]
    lines = [[str(column.header) for column in table.columns], ["---"] * len(columns)]
    lines += [list(row) for row in zip(*columns, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
