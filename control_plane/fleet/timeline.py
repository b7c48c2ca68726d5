"""Where the wait of a cold request went: a pure sum that conserves time, and its store."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from infra.contracts.base import ModelName, NodeId, ReplicaId, RequestId, RevisionName
from infra.contracts.stage import ColdStartReport, Rung, Stage, StageShare, StageTiming

# Two stages may overlap by a clock's error or because one runs beside the other. An instant goes
# to the stage that comes first in the climb, since the later one had to wait for it anyway; the
# queue explains only what nothing else does.
_PRECEDENCE = (
    Stage.PROVISION,
    Stage.IMAGE,
    Stage.RUNTIME,
    Stage.WEIGHTS,
    Stage.ENGINE,
    Stage.PREFILL,
    Stage.QUEUE,
)

_SAME_S = 1e-6  # an interval that is shorter than its stage by less was not cut


@dataclass(frozen=True, slots=True)
class ColdRequest:
    """The request whose wait is explained: arrival in unix seconds, time to first token."""

    request_id: RequestId
    model: ModelName
    revision: RevisionName
    replica_id: ReplicaId
    node_id: NodeId
    from_rung: Rung
    arrived_at: float
    ttft_s: float


def attribute(
    request: ColdRequest, timings: Iterable[StageTiming], *, clock_uncertainty_s: float = 0.0
) -> ColdStartReport:
    """Clips the timings to the request's wait and gives each instant to at most one stage.

    The shares and `unattributed_s` add up to `ttft_s` to float rounding, whatever the timings.
    """
    ttft_s = max(0.0, request.ttft_s)
    shares = _shares(request.arrived_at, ttft_s, timings)
    explained_s = math.fsum(share.seconds for share in shares)
    return ColdStartReport(
        request_id=request.request_id,
        model=request.model,
        revision=request.revision,
        replica_id=request.replica_id,
        node_id=request.node_id,
        from_rung=request.from_rung,
        started_at=request.arrived_at,
        ttft_s=ttft_s,
        shares=shares,
        unattributed_s=max(0.0, ttft_s - explained_s),
        clock_uncertainty_s=clock_uncertainty_s,
    )


def _shares(
    arrived_at: float, ttft_s: float, timings: Iterable[StageTiming]
) -> tuple[StageShare, ...]:
    free = [(0.0, ttft_s)]
    shares: list[StageShare] = []
    for timing in sorted(timings, key=lambda it: (_PRECEDENCE.index(it.stage), it.started_at)):
        start = timing.started_at - arrived_at
        taken, free = _take(free, start, start + timing.seconds)
        if timing.moved is not None and not timing.seconds and 0 <= start <= ttft_s:
            taken = [(start, start)]  # its bytes came beside what follows, and took no time
        shares.extend(
            StageShare(
                stage=timing.stage,
                offset_s=begin,
                seconds=end - begin,
                bytes=timing.bytes,
                bytes_per_s=timing.bytes_per_s,
                source=timing.source,
                came=() if timing.moved is None else timing.moved.came,
                parts=timing.parts if end - begin > timing.seconds - _SAME_S else (),
            )
            for begin, end in taken
        )
    return tuple(sorted(shares, key=lambda share: share.offset_s))


_Interval = tuple[float, float]


def _take(
    free: Sequence[_Interval], start: float, end: float
) -> tuple[list[_Interval], list[_Interval]]:
    """Splits the free intervals into what [start, end) covers and what stays free."""
    taken: list[_Interval] = []
    left: list[_Interval] = []
    for begin, stop in free:
        low, high = max(begin, start), min(stop, end)
        if low >= high:
            left.append((begin, stop))
            continue
        taken.append((low, high))
        if begin < low:
            left.append((begin, low))
        if high < stop:
            left.append((high, stop))
    return taken, left


class TimelineStore(Protocol):
    """Keeps the newest reports of every model; raises StoreUnavailable where it cannot be asked."""

    async def append(self, model: ModelName, reports: Sequence[ColdStartReport]) -> None:
        """Adds reports, the oldest first, and forgets those beyond the cap; a repeat adds them
        again."""
        ...

    async def last(self, model: ModelName, count: int) -> tuple[ColdStartReport, ...]:
        """The newest `count` reports, newest first."""
        ...

    async def find(self, model: ModelName, request_id: RequestId) -> ColdStartReport | None:
        """The report of one request, while it is kept."""
        ...

    async def forget(self, model: ModelName) -> None:
        """Drops a deleted model's reports; may be repeated."""
        ...


class MemoryTimelineStore:
    """Reports that end with the process."""

    def __init__(self, *, cap: int = 200) -> None:
        self._cap = cap
        self._reports: dict[ModelName, deque[ColdStartReport]] = {}

    async def append(self, model: ModelName, reports: Sequence[ColdStartReport]) -> None:
        kept = self._reports.setdefault(model, deque(maxlen=self._cap))
        kept.extendleft(reports)

    async def last(self, model: ModelName, count: int) -> tuple[ColdStartReport, ...]:
        return tuple(self._reports.get(model, ()))[: max(0, count)]

    async def find(self, model: ModelName, request_id: RequestId) -> ColdStartReport | None:
        reports = self._reports.get(model, ())
        return next((report for report in reports if report.request_id == request_id), None)

    async def forget(self, model: ModelName) -> None:
        self._reports.pop(model, None)
