"""What the gateway's figures are held against."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Slice:
    """What one turn of a gateway brought; `alone_s`: each request at one connection."""

    alone_s: Sequence[float]
    requests_per_s: float
    request_cpu_s: float
    token_cpu_s: float
    failed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """One gateway's run; seconds and bytes. Latencies are at one connection."""

    p50_s: float
    p99_s: float
    requests_per_s: float
    request_cpu_s: float
    token_cpu_s: float
    idle_bytes: int
    after_bytes: int
    failed: int


def figures(slices: Sequence[Slice], idle_bytes: int, after_bytes: int) -> Figures:
    """Quantiles over all turns, and medians of the turns: some may have met a busy machine."""
    alone = sorted(second for each in slices for second in each.alone_s)
    return Figures(
        p50_s=alone[len(alone) // 2],
        p99_s=alone[len(alone) * 99 // 100],
        requests_per_s=median(each.requests_per_s for each in slices),
        request_cpu_s=median(each.request_cpu_s for each in slices),
        token_cpu_s=median(each.token_cpu_s for each in slices),
        idle_bytes=idle_bytes,
        after_bytes=after_bytes,
        failed=sum(each.failed for each in slices),
    )


@dataclass(frozen=True, slots=True)
class Parked:
    """Requests sent to a model without a replica; `late_s` is from READY to the last answer."""

    count: int
    failed: int
    bytes_each: float
    late_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target; `is_met` is None where what it compares with is missing."""

    name: str
    measured: str
    target: str
    is_met: bool | None

    @property
    def word(self) -> str:
        return {True: "met", False: "NOT MET", None: "not measured"}[self.is_met]


def verdicts(rows: Mapping[str, Figures], parked: Parked) -> Iterator[Verdict]:
    """Every target beside what was measured."""
    ours, direct = rows["firstlight"], rows["direct"]
    for name, added, rate, token in (("nginx", 2.5, 0.4, 1.5), ("vllm-router", 1.0, 1.7, None)):
        peer = rows.get(name)
        if peer is None:
            yield Verdict(f"against {name}", "-", "-", None)
            continue
        added_to_peer = (ours.p50_s - direct.p50_s) / (peer.p50_s - direct.p50_s)
        yield _most(f"added p50 / {name}", added_to_peer, added)
        yield _least(f"requests/s/core / {name}", peer.request_cpu_s / ours.request_cpu_s, rate)
        if token is not None:
            yield _most(f"CPU per token / {name}", ours.token_cpu_s / peer.token_cpu_s, token)
    yield _most("memory, MB", ours.after_bytes / 1e6, 80)
    yield _most("parked request, KB", parked.bytes_each / 1e3, 10)
    yield _most(f"of {parked.count} parked: failed", parked.failed, 0)
    yield _most("last answer after READY, s", parked.late_s, 0.3)


def _most(name: str, measured: float, target: float) -> Verdict:
    return Verdict(name, f"{measured:.2f}", f"≤ {target:g}", measured <= target)


def _least(name: str, measured: float, target: float) -> Verdict:
    return Verdict(name, f"{measured:.2f}", f"≥ {target:g}", measured >= target)
