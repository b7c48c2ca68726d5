"""How long a cloud takes for a machine, and when it has none: seeded draws."""

import math
import random
from dataclasses import dataclass
from typing import Final

from infra.errors import NoCapacity, PlatformError, Throttled

# Mean seconds of EC2 from the call to a shell on the machine: the API, pending to running, the boot
# (brevdev/ec2-coldboot-research: 25.8 s, of which 19, 69 and 12 %; the type matters little).
LAUNCH_PARTS_S: Final = (4.9, 17.8, 3.1)
# Assumed, as AWS has no figure: a stopped machine has nothing to place and no disk to make.
START_PARTS_S: Final = (2.0, 5.5, 2.5)


@dataclass(frozen=True, slots=True)
class CloudTemper:
    """How a cloud behaves. Only the mean of a launch was measured; `start_s`, `stop_s`, `spread`
    (the sigma of each part's lognormal) and the shares of calls that fail are assumed."""

    launch_s: tuple[float, ...] = LAUNCH_PARTS_S
    start_s: tuple[float, ...] = START_PARTS_S
    stop_s: float = 30.0
    spread: float = 0.3
    no_capacity: float = 0.02
    not_started: float = 0.01
    throttled: float = 0.01


class SimulatedCloud:
    """Draws for one run; owns its dice."""

    def __init__(self, temper: CloudTemper, *, seed: int) -> None:
        self._temper = temper
        self._dice = random.Random(seed)
        self.filled_s = 0.0  # that machines ran for to get into standby

    def launch(self) -> float:
        """Seconds from the call to a machine's registration; raises NoCapacity, Throttled."""
        self._refuse(self._temper.no_capacity, NoCapacity("the cloud has no machine", tried=[]))
        return self._seconds(self._temper.launch_s)

    def start(self) -> float:
        """The same of one from standby."""
        self._refuse(self._temper.not_started, NoCapacity("the machine does not start", tried=[]))
        return self._seconds(self._temper.start_s)

    def fill(self) -> float:
        """Seconds until a machine is launched, prepared and stopped in standby; raises what
        `launch` raises."""
        seconds = self.launch() + self._temper.stop_s
        self.filled_s += seconds
        return seconds

    def _refuse(self, share: float, error: PlatformError) -> None:
        if self._dice.random() < self._temper.throttled:
            raise Throttled("the cloud takes no more calls for now", retry_after_s=1.0)
        if self._dice.random() < share:
            raise error

    def _seconds(self, parts: tuple[float, ...]) -> float:
        spread = self._temper.spread
        shift = spread**2 / 2  # so that the mean is the part's
        return sum(part * math.exp(self._dice.gauss(-shift, spread)) for part in parts)
