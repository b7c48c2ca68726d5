"""What a machine in standby would have been worth to a replica that needed one: pure.

The rung `stopped` is sized as parked workers are (`standby_demand`): the k-th machine is kept as
long as the starts that were the k-th within the time that a pool takes to refill would have paid
for it. A stopped machine costs its disks; it spares a start the difference between a launch and a
start from standby, in seconds of a running machine, and its part of `scaling.cold_penalty`.

The rung `node` is a machine that runs and idles: it costs what it costs to serve, and spares a
start the whole wait. The k-th machine idles on where that is worth its price, else it waits
stopped where that is.
"""

from dataclasses import dataclass, field
from typing import Final

from control_plane.fleet.standby_demand import Start, Starts

# Of the price of running: 100 GB of gp3 beside a g6.xlarge are 1.4 %, beside anything larger less.
STOPPED_PRICE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Climbs:
    """Seconds from the wish for a machine to its node, by where it comes from."""

    launch_s: float = 26.0
    start_s: float = 10.0

    @property
    def spared_s(self) -> float:
        """What standby spares a start; a pool that is no faster spares nothing."""
        return max(0.0, self.launch_s - self.start_s)

    @property
    def refill_s(self) -> float:
        """A machine is launched and stopped before it waits: about twice a launch."""
        return 2 * self.launch_s


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many machines of a kind wait on each rung, and why."""

    stopped: int
    idle: int
    reason: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """The last wishes for a kind of machines, by what each rung is worth to them."""

    _stopped: Starts = field(default_factory=Starts)
    _idle: Starts = field(default_factory=Starts)

    def add(self, *, at: float, cold_penalty: float, climbs: Climbs) -> None:
        self._stopped.add(start_of_machine(at=at, cold_penalty=cold_penalty, climbs=climbs))
        self._idle.add(Start(at, climbs.launch_s + cold_penalty))

    def worth(self, *, most: int, now: float, refill_s: float) -> Waiting:
        """How many are worth their price, `most` on both rungs together."""
        idle = self._idle.worth(most=most, now=now, refill_s=refill_s)
        stopped = self._stopped.worth(most=most, now=now, refill_s=refill_s)
        return Waiting(
            max(0, stopped.workers - idle.workers),
            idle.workers,
            stopped.reason or idle.reason or "none",
        )


def start_of_machine(*, at: float, cold_penalty: float, climbs: Climbs) -> Start:
    """A replica's wish for a machine; its worth is in seconds of a stopped one."""
    part = climbs.spared_s / climbs.launch_s if climbs.launch_s > 0 else 0.0
    return Start(at, (climbs.spared_s + cold_penalty * part) / STOPPED_PRICE)
