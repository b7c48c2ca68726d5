"""What a decision looks at, what comes out of it, and the constants it is made with."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from control_plane.autoscaler.demand import Demand


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of decisions; seconds and ratios as in Knative's defaults."""

    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0  # wanted over started
    most_growth: float = 1000.0  # times what was started, a decision
    most_shrink: float = 2.0  # divides ready, a decision
    most_work: int = 9_000  # of a tick, in looks; what nobody waits for is put off beyond it


class Panic(NamedTuple):
    """A burst is being answered: nothing shrinks below `peak` before `until`."""

    until: float
    peak: int


class Observed:
    """Everything a decision looks at; a value.

    `stable_mean` and `panic_mean` are requests at once over the long and the short window.
    `idle_since` is when the last request left or the youngest replica became ready, whichever
    was later, and `grace_s` what follows until the last replica goes. `scheduled` replicas are
    kept at this time of day, `warm` ones because requests are about to come. `is_contended` says
    that others wait for the room this revision idles in; `is_superseded` that requests go to
    another revision of its model.
    """

    __slots__ = (
        *("demand", "desired", "grace_s", "idle_since", "is_contended", "is_superseded"),
        *("loading", "panic", "panic_mean", "ready", "scheduled", "stable_mean", "warm"),
    )

    def __init__(
        self,
        *,
        desired: int,
        ready: int,
        loading: int,
        demand: Demand | None,
        stable_mean: float | None = None,
        panic_mean: float | None = None,
        idle_since: float | None = None,
        grace_s: float = 0.0,
        scheduled: int = 0,
        panic: Panic | None = None,
        is_contended: bool = False,
        is_superseded: bool = False,
        warm: int = 0,
    ) -> None:
        self.desired: Final = desired
        self.ready: Final = ready
        self.loading: Final = loading
        self.demand: Final = demand
        self.stable_mean: Final = stable_mean
        self.panic_mean: Final = panic_mean
        self.idle_since: Final = idle_since
        self.grace_s: Final = grace_s
        self.scheduled: Final = scheduled
        self.panic: Final = panic
        self.is_contended: Final = is_contended
        self.is_superseded: Final = is_superseded
        self.warm: Final = warm


class Decision:
    """So many replicas, and why; `panic` is handed to the next decision. A value."""

    __slots__ = ("panic", "reason", "replicas")

    def __init__(self, replicas: int, reason: str, panic: Panic | None = None) -> None:
        self.replicas: Final = replicas
        self.reason: Final = reason
        self.panic: Final = panic
