"""How long a decision stands, in time and in demand, so that nobody has to repeat it: pure."""

import math
from typing import Final

from control_plane.autoscaler.decider import fewest_under_load, idle_for_s
from control_plane.autoscaler.decision import Decision, Observed, Tuning
from infra.contracts.model_spec import Scaling

_EARLY_S = 1e-3  # a look that comes too early is repeated; one that comes late is a late decision


def stands_until(
    observed: Observed,
    decision: Decision,
    *,
    least: int,
    now: float,
    changed_at: float,
    tuning: Tuning,
) -> float:
    """Until when a decision stands if nothing happens; `now` where the next tick may differ.

    1. at once: it changed something, what it wants is not there, others wait for its room, or
       nothing is known of the demand;
    2. nothing is asked for: to the end of the grace, in panic no longer than that, and where more
       replicas than one are to go with time, at once while the windows see what was;
    3. something is asked for: at once while the windows see the demand change or panic begins,
       else to the end of the panic, or for good.
    """
    demand = observed.demand
    is_met = observed.ready + observed.loading == observed.desired == decision.replicas
    if demand is None or not is_met or observed.is_contended:
        return now
    is_moving = now - changed_at < tuning.stable_s
    if demand.concurrency > 0:
        is_settled = _is_panic_settled(observed, decision, now=now, tuning=tuning)
        return _panic_ends_at(decision) if is_settled and not is_moving else now
    if observed.desired == 0 or idle_for_s(observed, now=now) >= observed.grace_s:
        return math.inf
    if decision.panic is None and is_moving and observed.desired > max(least, 1):
        return now
    return min(_grace_ends_at(observed) - _EARLY_S, _panic_ends_at(decision))


class Band:
    """A decision under load is made again before `until` while, counted in replicas and but for
    NOISE, the stable mean is above `low` and at most `high`, and the panic mean is at most
    `burst`."""

    __slots__ = ("burst", "high", "low", "until")

    def __init__(self, low: float, high: float, burst: float, until: float = math.inf) -> None:
        self.low: Final = low
        self.high: Final = high
        self.burst: Final = burst
        self.until: Final = until


def band_of(
    scaling: Scaling,
    observed: Observed,
    decision: Decision,
    *,
    least: int,
    now: float,
    tuning: Tuning,
) -> Band | None:
    """The band of a decision under load that left everything as it was; None for any other."""
    demand, ready, panic = observed.demand, observed.ready, decision.panic
    if demand is None or demand.concurrency == 0 or observed.loading or observed.is_superseded:
        return None
    if not ready == observed.desired == decision.replicas:
        return None
    high = math.inf if ready == scaling.max else ready
    burst = math.ceil(tuning.panic_threshold * ready) - 1
    if panic is None:
        is_fewest = ready <= max(least, fewest_under_load(ready, tuning))
        return Band(-math.inf if is_fewest else ready - 1, high, burst)
    if panic.peak < ready or not _is_panic_settled(observed, decision, now=now, tuning=tuning):
        return None
    # `peak` keeps what there is; a burst above it would raise it, and never above the maximum.
    peak = math.inf if panic.peak >= scaling.max else panic.peak
    return Band(-math.inf, high, min(burst, peak), panic.until)


def _is_panic_settled(
    observed: Observed, decision: Decision, *, now: float, tuning: Tuning
) -> bool:
    """Whether panic is as it was: a burst that goes on makes it last longer every time."""
    panic = decision.panic
    is_renewed = panic is not None and panic.until >= now + tuning.stable_s
    return panic == observed.panic and not is_renewed


def _panic_ends_at(decision: Decision) -> float:
    return math.inf if decision.panic is None else decision.panic.until


def _grace_ends_at(observed: Observed) -> float:
    return math.inf if observed.idle_since is None else observed.idle_since + observed.grace_s
