"""The account of one cold request: its stages, as a report and as `Server-Timing`."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from control_plane.activator.call import Call
from control_plane.fleet.replica import Endpoint
from control_plane.fleet.state import Fleet
from control_plane.fleet.timeline import Account, ColdRequest, OwnTiming, attribute
from infra.contracts.revision import Revision
from infra.contracts.stage import Stage, StagePart, StageTiming

_METRIC = re.compile(
    rb"(?:^|[,\s])(prefill|tokenise|decode)\s*;\s*dur\s*=\s*([0-9]{1,12}(?:\.[0-9]{0,12})?)"
)
_QUEUE: Final = Stage.QUEUE
_PREFILL: Final = Stage.PREFILL


class Try(NamedTuple):
    """One time the request was at a replica, in unix seconds."""

    endpoint: Endpoint
    dispatched_at: float
    ended_at: float
    parts: tuple[StagePart, ...] = ()


class ReplicaTiming(NamedTuple):
    """What a replica's `Server-Timing` says, in seconds; 0 where it says nothing.

    `prefill` lasts to the first token, and `tokenise` is its beginning; `decode` follows.
    """

    prefill: float = 0.0
    tokenise: float = 0.0
    decode: float = 0.0

    @classmethod
    def read(cls, server_timing: bytes) -> "ReplicaTiming":
        """The header's value."""
        if not server_timing:
            return _UNTOLD
        found = _METRIC.findall(server_timing)
        return cls(**{name.decode(): float(milliseconds) / 1000 for name, milliseconds in found})

    def parts(self) -> tuple[StagePart, ...]:
        """Of the stage prefill; what they leave of it is the way to the replica and back."""
        if not self.prefill:
            return ()
        compute = max(0.0, self.prefill - self.tokenise)
        return (
            StagePart(name="tokenise", seconds=self.tokenise),
            StagePart(name="compute", seconds=compute),
        )


_UNTOLD: Final = ReplicaTiming()


def explain(call: Call, revision: Revision, tries: Sequence[Try], fleet: Fleet) -> Account:
    """The account of a request whose last try brought the first token at its `ended_at`.

    The climb is the fleet's account of the replica; before it and after it the request queued
    here, and its time at replicas is prefill.
    """
    last = tries[-1]
    climb = fleet.timings(last.endpoint.replica_id)
    request = ColdRequest(
        call.request_id,
        revision.model,
        revision.name,
        last.endpoint.replica_id,
        last.endpoint.node_id,
        fleet.from_rung(last.endpoint.replica_id),
        call.arrived_at,
        last.ended_at - call.arrived_at,
    )
    return attribute(
        request,
        [*climb, *_queueing(call, tries, climb, fleet), *map(_prefill, tries)],
        clock_uncertainty_s=fleet.clock_uncertainty_s(last.endpoint.node_id),
    )


def _queueing(
    call: Call, tries: Sequence[Try], climb: Sequence[StageTiming], fleet: Fleet
) -> list[OwnTiming]:
    """From arrival to the wish for a replica, and from the end of its climb to each dispatch: first
    the news of it was on its way here, then there was no permit."""
    timings: list[OwnTiming] = []
    if climb:
        begun_at = min(timing.started_at for timing in climb)
        timings.append(_queue(call.arrived_at, begun_at))
    for earlier, later in zip((None, *tries), tries, strict=False):
        replica = fleet.replica(later.endpoint.replica_id)
        ready_at = None if replica is None else replica.ready_at
        if replica is not None and ready_at is not None:
            climbed_at = max([it.ended_at for it in replica.stages], default=ready_at)
            timings.append(_queue(climbed_at, ready_at, source="node"))
            free_at = ready_at if earlier is None else max(ready_at, earlier.ended_at)
            timings.append(_queue(free_at, later.dispatched_at))
    return timings


def _queue(started_at: float, ended_at: float, *, source: str = "activator") -> OwnTiming:
    return OwnTiming(_QUEUE, started_at, ended_at, source)


def _prefill(attempt: Try) -> OwnTiming:
    at = attempt.endpoint.replica_id
    return OwnTiming(_PREFILL, attempt.dispatched_at, attempt.ended_at, at, attempt.parts)


def server_timing(seconds: Sequence[tuple[str, float]]) -> bytes:
    """An account as a `Server-Timing` value, milliseconds (W3C Server Timing, section 2)."""
    parts = ["%s;dur=%.3f" % (name, taken * 1000) for name, taken in seconds]  # noqa: UP031
    return ", ".join(parts).encode("ascii")
