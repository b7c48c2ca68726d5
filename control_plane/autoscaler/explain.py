"""What `platform ls` says of a model, as a pure function of how things stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from control_plane.autoscaler.demand import Demand
from control_plane.deployments.release import Share
from control_plane.fleet.plan import Standing
from control_plane.fleet.replica import Climb, Replica
from infra.contracts.revision import ModelState, ReplicaState
from infra.contracts.stage import StageProgress


@dataclass(frozen=True, slots=True)
class Explanation:
    """One word and one line for a model; `desired_replicas` is what was decided, `hint` what can be
    done where its replicas failed."""

    state: ModelState
    reason: str
    desired_replicas: int
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """How a revision stands."""

    standing: Standing
    replicas: Sequence[Replica]
    climb: Climb | None
    demand: Demand | None
    grace_s: float
    keeps: int
    scheduled: int
    idle_since: float | None
    sleepers: int = 0
    warm: int = 0


def explain(situation: Situation, *, now: float, zone: tzinfo | None = UTC) -> Explanation:
    """Says where a model is and what would change it; `zone` is for the time of day."""
    state, reason = _explain(situation, now, zone)
    standing = situation.standing
    hint = standing.crash.hint if standing.crash.failures else None
    return Explanation(state, reason, standing.desired, hint)


def of_all(parts: Sequence[tuple[Share, Explanation]]) -> Explanation:
    """A model as a whole, whose requests are split so: the largest share speaks first."""
    _, leading = parts[0]
    if len(parts) == 1:
        return leading
    reasons = (f"{it.revision.name} ({it.percent} %): {one.reason}" for it, one in parts)
    desired = sum(one.desired_replicas for _, one in parts)
    hint = next((one.hint for _, one in parts if one.hint), None)
    return Explanation(leading.state, "; ".join(reasons), desired, hint)


def _explain(situation: Situation, now: float, zone: tzinfo | None) -> tuple[ModelState, str]:
    standing, climb = situation.standing, situation.climb
    ready = sum(replica.state is ReplicaState.READY for replica in situation.replicas)
    draining = sum(replica.state is ReplicaState.DRAINING for replica in situation.replicas)
    if ready:
        return ModelState.READY, _serving(situation, ready, now)
    if standing.crash.is_open:
        return ModelState.FAILING, _failing(standing, now)
    if climb is not None:
        return ModelState.STARTING, _starting(climb) + _last_failure(standing)
    if standing.refused is not None:
        return ModelState.FAILING, f"no machine: {standing.refused}; next request tries again"
    if standing.desired and standing.expected:
        return ModelState.STARTING, f"{_count(standing.expected)} expected: a node is not back yet"
    if standing.desired and standing.blocked is not None:
        return ModelState.STARTING, f"waiting for room: {standing.blocked}"
    if standing.desired:
        return ModelState.STARTING, f"about to start: {standing.reason}" + _last_failure(standing)
    if draining:
        return ModelState.DRAINING, f"{_count(draining)} draining: {standing.reason}"
    return ModelState.IDLE, _idle(situation, zone)


def _serving(situation: Situation, ready: int, now: float) -> str:
    parts = [f"{_count(ready)} ready"]
    if situation.climb is not None:
        parts.append(_starting(situation.climb))
    if situation.standing.crash.failures:
        parts.append(f"last failure: {situation.standing.crash.why()}")
    if situation.standing.blocked is not None:
        parts.append(f"others wait for room: {situation.standing.blocked}")
    demand = situation.demand
    if demand is not None and demand.concurrency:
        parts.append(f"{demand.in_flight} in flight, {demand.waiting} waiting")
    elif situation.warm > max(situation.keeps, situation.scheduled):
        parts.append("idle, kept for requests to come")
    elif situation.scheduled > situation.keeps:
        parts.append("idle, kept by the schedule")
    elif situation.keeps == 0 and situation.idle_since is not None:
        left_s = max(0.0, situation.idle_since + situation.grace_s - now)
        parts.append(f"idle, stops in {left_s:.0f} s")
    else:
        parts.append("idle")
    return ", ".join(parts)


def _failing(standing: Standing, now: float) -> str:
    crash = standing.crash
    wait_s = crash.wait_s(now)
    again = f"next try in {wait_s:.0f} s at the earliest" if wait_s else "next request tries again"
    verb = "cannot start" if crash.is_permanent else "crash"
    return f"replicas {verb}: {crash.why()}; {again}"


def _starting(climb: Climb) -> str:
    return f"{_count(climb.starting)} starting: {_progress(climb.progress)}"


def _last_failure(standing: Standing) -> str:
    crash = standing.crash
    return f"; last failure: {crash.why()}" if crash.failures else ""


def _progress(progress: StageProgress | None) -> str:
    if progress is None:
        return "provision"
    return f"{progress.stage} {progress.fraction * 100:.0f} %"


def _idle(situation: Situation, zone: tzinfo | None) -> str:
    demand = situation.demand
    act = "wakes" if situation.sleepers else "starts"
    if demand is None or demand.last_active_at is None:
        return f"no request yet, the first one {act} it"
    since = datetime.fromtimestamp(demand.last_active_at, tz=zone)
    return f"idle since {since:%H:%M}, next request {act} it"


def _count(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"
