"""Where the wait of a cold request went: a pure sum that conserves time, and its store."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from infra.contracts.base import ModelName, NodeId, ReplicaId, RequestId, RevisionName
from infra.contracts.stage import (
    ColdStartReport,
    Moved,
    Rung,
    Stage,
    StagePart,
    StageShare,
    StageTiming,
)

# Two stages may overlap by a clock's error or because one runs beside the other. An instant goes
# to the stage that comes first in the climb, since the later one had to wait for it anyway; the
# queue explains only what nothing else does.
_PRECEDENCE: Final = {
    Stage.PROVISION: 0,
    Stage.IMAGE: 1,
    Stage.RUNTIME: 2,
    Stage.WEIGHTS: 3,
    Stage.ENGINE: 4,
    Stage.PREFILL: 5,
    Stage.QUEUE: 6,
}

_CLIMB: Final = [stage.value for stage in Stage]
_PLACES: Final = {stage: place for place, stage in enumerate(Stage)}
_SAME_S: Final = 1e-6  # an interval that is shorter than its stage by less was not cut


class OwnTiming:
    """What a StageTiming is, of a stage that was measured here: a contract costs ten times that."""

    __slots__ = (
        "bytes",
        "bytes_per_s",
        "moved",
        "parts",
        "seconds",
        "source",
        "stage",
        "started_at",
    )

    def __init__(
        self,
        stage: Stage,
        started_at: float,
        ended_at: float,
        source: str,
        parts: tuple[StagePart, ...] = (),
    ) -> None:
        self.stage: Final = stage
        self.started_at: Final = started_at
        self.seconds: Final = max(0.0, ended_at - started_at)
        self.source: Final = source
        self.parts: Final = parts
        self.moved: Final[Moved | None] = None
        self.bytes: Final[int | None] = None
        self.bytes_per_s: Final[float | None] = None


class ColdRequest:
    """The request whose wait is explained: arrival in unix seconds, time to first token."""

    __slots__ = (
        "arrived_at",
        "from_rung",
        "model",
        "node_id",
        "replica_id",
        "request_id",
        "revision",
        "ttft_s",
    )

    def __init__(
        self,
        request_id: RequestId,
        model: ModelName,
        revision: RevisionName,
        replica_id: ReplicaId,
        node_id: NodeId,
        from_rung: Rung,
        arrived_at: float,
        ttft_s: float,
    ) -> None:
        self.request_id: Final = request_id
        self.model: Final = model
        self.revision: Final = revision
        self.replica_id: Final = replica_id
        self.node_id: Final = node_id
        self.from_rung: Final = from_rung
        self.arrived_at: Final = arrived_at
        self.ttft_s: Final = max(0.0, ttft_s)


_Timing = StageTiming | OwnTiming
_Interval = tuple[float, float]
_Share = tuple[float, float, _Timing]  # offset, seconds, of what


class Account:
    """A cold request's wait, each instant of it given to at most one stage.

    It becomes a report when it is stored, which of a burst most are not.
    """

    __slots__ = ("_clock_uncertainty_s", "_shares", "request", "unattributed_s")

    def __init__(
        self, request: ColdRequest, shares: list[_Share], clock_uncertainty_s: float
    ) -> None:
        self.request: Final = request
        self._shares: Final = shares
        self._clock_uncertainty_s: Final = clock_uncertainty_s
        explained_s = math.fsum([seconds for _, seconds, _ in shares])
        self.unattributed_s: Final = max(0.0, request.ttft_s - explained_s)

    def seconds(self) -> list[tuple[str, float]]:
        """What every stage that took part took, in the order of the climb; what none did; all."""
        totals: list[float | None] = [None] * len(_CLIMB)
        for _, seconds, timing in self._shares:
            place = _PLACES[timing.stage]
            totals[place] = (totals[place] or 0.0) + seconds
        known = [(_CLIMB[place], total) for place, total in enumerate(totals) if total is not None]
        known.append(("unattributed", self.unattributed_s))
        known.append(("total", self.request.ttft_s))
        return known

    def report(self) -> ColdStartReport:
        """As it is stored and shown."""
        request = self.request
        return ColdStartReport(
            request_id=request.request_id,
            model=request.model,
            revision=request.revision,
            replica_id=request.replica_id,
            node_id=request.node_id,
            from_rung=request.from_rung,
            started_at=request.arrived_at,
            ttft_s=request.ttft_s,
            shares=tuple(map(_as_told, self._shares)),
            unattributed_s=self.unattributed_s,
            clock_uncertainty_s=self._clock_uncertainty_s,
        )


def attribute(
    request: ColdRequest, timings: Iterable[_Timing], *, clock_uncertainty_s: float = 0.0
) -> Account:
    """Clips the timings to the request's wait and gives each instant to at most one stage.

    The shares and `unattributed_s` add up to `ttft_s` to float rounding, whatever the timings.
    """
    order = [
        (_PRECEDENCE[timing.stage], timing.started_at, number, timing)
        for number, timing in enumerate(timings)
    ]
    order.sort()
    free, shares = [(0.0, request.ttft_s)], []
    for place, (_, started_at, _, timing) in enumerate(order):
        start = started_at - request.arrived_at
        taken, free = _take(free, start, start + timing.seconds)
        if timing.moved is not None and not timing.seconds and 0 <= start <= request.ttft_s:
            taken = [(start, start)]  # its bytes came beside what follows, and took no time
        shares += [(begin, place, end - begin, timing) for begin, end in taken]
    shares.sort()
    told = [(begin, seconds, timing) for begin, _, seconds, timing in shares]
    return Account(request, told, clock_uncertainty_s)


def _as_told(share: _Share) -> StageShare:
    offset_s, seconds, timing = share
    return StageShare(
        stage=timing.stage,
        offset_s=offset_s,
        seconds=seconds,
        bytes=timing.bytes,
        bytes_per_s=timing.bytes_per_s,
        source=timing.source,
        came=() if timing.moved is None else timing.moved.came,
        parts=timing.parts if seconds > timing.seconds - _SAME_S else (),
    )


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

    @property
    def cap(self) -> int:
        """How many of a model."""
        ...

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
        self.cap: Final = cap
        self._reports: dict[ModelName, deque[ColdStartReport]] = {}

    async def append(self, model: ModelName, reports: Sequence[ColdStartReport]) -> None:
        kept = self._reports.setdefault(model, deque(maxlen=self.cap))
        kept.extendleft(reports)

    async def last(self, model: ModelName, count: int) -> tuple[ColdStartReport, ...]:
        return tuple(self._reports.get(model, ()))[: max(0, count)]

    async def find(self, model: ModelName, request_id: RequestId) -> ColdStartReport | None:
        reports = self._reports.get(model, ())
        return next((report for report in reports if report.request_id == request_id), None)

    async def forget(self, model: ModelName) -> None:
        self._reports.pop(model, None)
