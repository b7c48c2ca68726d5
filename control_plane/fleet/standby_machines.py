"""What a machine in standby would have been worth to a replica that needed one: pure.

The rung `stopped` is sized as parked workers are (`standby_demand`): the k-th machine is kept as
long as the starts that were the k-th within the time that a pool takes to refill would have paid
for it. A stopped machine costs its disks; it spares a start the difference between a launch and a
start from standby, in seconds of a running machine, and its part of `scaling.cold_penalty`.

The rung `node` is a machine that runs and idles, `Machines.idle_s` long: it costs what it costs to
serve, so what would be worth one more is worth `scaling.min` to whoever says so.
"""

from dataclasses import dataclass
from typing import Final

from control_plane.fleet.standby_demand import Start

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


def start_of_machine(*, at: float, cold_penalty: float, climbs: Climbs) -> Start:
    """A replica's wish for a machine; its worth is in seconds of a stopped one."""
    part = climbs.spared_s / climbs.launch_s if climbs.launch_s > 0 else 0.0
    return Start(at, (climbs.spared_s + cold_penalty * part) / STOPPED_PRICE)
