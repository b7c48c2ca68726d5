"""How many replicas a revision should have: a pure decision with its reason.

After Knative's KPA (pkg/autoscaler/scaling/autoscaler.go): a stable window sizes, a short panic
window answers bursts, and in panic nothing shrinks. Differences: demand is an integral rather
than a scrape, replicas that load count as capacity, the last replica goes after the model's own
grace, and nothing shrinks while a replica loads.
"""

import math
from typing import Final

from control_plane.autoscaler.decision import Decision, Observed, Panic, Tuning
from control_plane.autoscaler.demand import Demand
from infra.contracts.model_spec import Scaling

NOISE: Final = 1e-6  # of a mean over the target: rounding is no replica


def decide(
    scaling: Scaling,
    observed: Observed,
    *,
    now: float,
    tuning: Tuning = Tuning(),  # noqa: B008 - frozen value
) -> Decision:
    """The decision, in this order:

    1. nothing is known of the demand: keep what is;
    2. nothing is asked for: what the minimum and the grace leave (`_at_rest`);
    3. something is asked for: what the windows say, at least 1 (`_under_load`);
    4. never fewer while a replica loads, unless its revision is superseded and nobody waits for
       it; never more than the maximum.
    """
    least = least_replicas(scaling, observed)
    demand = observed.demand
    if demand is None or not math.isfinite(demand.request_seconds):
        kept = min(max(observed.desired, least), scaling.max)
        return Decision(kept, "demand unknown, kept", observed.panic)
    if demand.concurrency <= 0:
        decision = _at_rest(scaling, observed, least, now=now)
    else:
        decision = _under_load(scaling, observed, demand, now=now, tuning=tuning)
    is_abandoned = observed.is_superseded and demand.concurrency <= 0
    if decision.replicas < observed.desired and observed.loading > 0 and not is_abandoned:
        reason = f"{observed.loading} still loading, nothing stops before"
        decision = Decision(observed.desired, reason, decision.panic)
    return _bounded(decision, least, scaling.max)


def least_replicas(scaling: Scaling, observed: Observed) -> int:
    """What is kept whatever the demand."""
    if observed.is_superseded:
        return 0
    return min(max(scaling.min, observed.scheduled, observed.warm), scaling.max)


def _at_rest(scaling: Scaling, observed: Observed, least: int, *, now: float) -> Decision:
    if observed.ready == 0 and observed.loading == 0:
        return Decision(least, _why_at_least(scaling, observed, least))
    idle_s, grace_s = idle_for_s(observed, now=now), observed.grace_s
    if idle_s >= grace_s or observed.is_contended or observed.is_superseded:
        reason = _why_to_rest(observed, idle_s)
        return Decision(
            least, f"{reason}; {_why_at_least(scaling, observed, least)}" if least else reason
        )
    reason = f"idle for {idle_s:.0f} s of {grace_s:.0f} s grace"
    if observed.panic is not None and now < observed.panic.until:
        return Decision(observed.desired, reason, observed.panic)
    wanted = _replicas_for(observed.stable_mean, scaling.target_concurrency)
    return Decision(min(observed.desired, max(wanted, observed.ready // 2, 1)), reason)


def idle_for_s(observed: Observed, *, now: float) -> float:
    """How much of the grace is over."""
    return 0.0 if observed.idle_since is None else max(0.0, now - observed.idle_since)


def _why_at_least(scaling: Scaling, observed: Observed, least: int) -> str:
    if least > max(scaling.min, observed.scheduled):
        return f"{least} warmed for requests to come"
    if least > scaling.min:
        return f"the schedule keeps {least}"
    return f"the minimum is {least}" if least else "nothing is asked for"


def _why_to_rest(observed: Observed, idle_s: float) -> str:
    if observed.is_superseded:
        return "superseded, and its requests are served"
    if observed.is_contended:
        return f"idle for {idle_s:.0f} s, and others wait for its room"
    return f"idle for {idle_s:.0f} s"


def _under_load(
    scaling: Scaling, observed: Observed, demand: Demand, *, now: float, tuning: Tuning
) -> Decision:
    started = max(1, observed.ready + observed.loading)
    stable_mean = _or_now(observed.stable_mean, demand)
    panic_mean = _or_now(observed.panic_mean, demand)
    most = math.ceil(tuning.most_growth * started)
    # What is in flight may take longer than is known of requests: nothing that serves is spared.
    serving = min(observed.ready, _replicas_for(demand.in_flight, scaling.target_concurrency))
    fewest = max(fewest_under_load(observed.ready, tuning), serving)
    stable = _clamp(_replicas_for(stable_mean, scaling.target_concurrency), fewest, most)
    burst = _clamp(_replicas_for(panic_mean, scaling.target_concurrency), fewest, most)
    is_burst = burst / started >= tuning.panic_threshold
    panic = _next_panic(observed, min(burst, scaling.max), is_burst, now=now, tuning=tuning)
    replicas = stable if panic is None else max(stable, panic.peak)
    if is_burst:
        return Decision(replicas, f"burst of {panic_mean:.1f} at once{_target(scaling)}", panic)
    if observed.desired == 0 or observed.ready + observed.loading == 0:
        return Decision(replicas, f"{demand.concurrency} waiting{_target(scaling)}", panic)
    reason = f"{stable_mean:.1f} at once{_target(scaling)}"
    if replicas > stable:
        reason += f", and {replicas} were needed a moment ago"
    elif replicas == serving > _replicas_for(stable_mean, scaling.target_concurrency):
        reason += f", and {demand.in_flight} in flight"
    return Decision(replicas, reason, panic)


def fewest_under_load(ready: int, tuning: Tuning) -> int:
    """What one decision leaves at least while something is asked for."""
    return max(1, math.floor(ready / tuning.most_shrink))


def _next_panic(
    observed: Observed, peak: int, is_burst: bool, *, now: float, tuning: Tuning
) -> Panic | None:
    """Enters, extends or leaves panic; its peak never falls. A first replica is no panic."""
    before = observed.panic
    if is_burst:
        return Panic(now + tuning.stable_s, max(peak, before.peak if before else 0))
    if before is None or now >= before.until:
        return None
    return before if peak <= before.peak else Panic(before.until, peak)


def _or_now(mean: float | None, demand: Demand) -> float:
    """The mean, or the present load while the window has none."""
    if mean is None or not math.isfinite(mean):
        return float(demand.concurrency)
    return mean


def _replicas_for(mean: float | None, target: float) -> int:
    if mean is None or not math.isfinite(mean) or mean <= 0:
        return 0
    return math.ceil(mean / target - NOISE)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _bounded(decision: Decision, least: int, most: int) -> Decision:
    replicas = _clamp(decision.replicas, least, most)
    if replicas == decision.replicas:
        return decision
    bound = "minimum" if replicas > decision.replicas else "maximum"
    return Decision(replicas, f"{decision.reason}, {bound} {replicas}", decision.panic)


def _target(scaling: Scaling) -> str:
    return f", {scaling.target_concurrency:g} a replica"
