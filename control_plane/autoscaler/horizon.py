"""How long a decision stands, in time and in demand, so that nobody has to repeat it: pure."""

import math
from typing import NamedTuple

from control_plane.autoscaler.decider import Decision, Observed, Tuning, fewest_under_load
from infra.contracts.model_spec import Scaling

_EARLY_S = 1e-3  # a look that comes too early is repeated; one that comes late is a late decision


def stands_until(
    observed: Observed, decision: Decision, *, now: float, changed_at: float, tuning: Tuning
) -> float:
    """Until when a decision stands if nothing happens; `now` where the next tick may differ.

    1. at once: it changed something, what it wants is not there, or it was made in panic;
    2. at once: nothing is known of the demand, or the windows still see it change;
    3. at the end of the grace, where one runs;
    4. for good.
    """
    is_met = observed.ready + observed.loading == observed.desired == decision.replicas
    if not is_met or decision.panic is not None or observed.is_contended:
        return now
    if observed.demand is None or now - changed_at < tuning.stable_s:
        return now
    ends_at = (observed.idle_since or 0.0) + observed.grace_s
    if observed.demand.concurrency == 0 and now < ends_at:
        return ends_at - _EARLY_S
    return math.inf


class Band(NamedTuple):
    """A decision under load is made again while, counted in replicas and but for NOISE, the stable
    mean is above `low` and at most `high`, and the panic mean is at most `burst`."""

    low: float
    high: float
    burst: float


def band_of(
    scaling: Scaling, observed: Observed, decision: Decision, *, least: int, tuning: Tuning
) -> Band | None:
    """The band of a decision under load that left everything as it was; None for any other."""
    demand, ready = observed.demand, observed.ready
    is_calm = decision.panic is None and observed.loading == 0
    if demand is None or demand.concurrency == 0 or not is_calm or observed.is_superseded:
        return None
    if not ready == observed.desired == decision.replicas:
        return None
    is_fewest = ready <= max(least, fewest_under_load(ready, tuning))
    return Band(
        low=-math.inf if is_fewest else ready - 1,
        high=math.inf if ready == scaling.max else ready,
        burst=math.ceil(tuning.panic_threshold * ready) - 1,
    )
