"""Keeps as many machines in standby as the wishes for machines were worth."""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from statistics import median

import structlog

from control_plane.capacity.port import MachineKind
from control_plane.deployments.service import Deployments
from control_plane.fleet.machines import Arrival, Machines
from control_plane.fleet.standby_machines import Climbs, Wishes
from infra.clock import Clock
from infra.errors import PlatformError
from infra.supervise import repeat

log = structlog.get_logger()

_AGAIN_S = 60.0  # what wishes are worth is asked as often
_REMEMBERED = 5  # of launches and starts from standby, each


class MachineKeeper:
    """Owns what is remembered of wishes for machines, by kind; in memory only."""

    def __init__(
        self,
        deployments: Deployments,
        machines: Machines,
        *,
        clock: Clock,
        most: int,
        is_leading: Callable[[], bool] = lambda: True,
    ) -> None:
        """`most` machines of a kind are kept at most."""
        self._deployments = deployments
        self._machines = machines
        self._clock = clock
        self._most = most
        self._is_leading = is_leading
        self._wishes: dict[MachineKind, Wishes] = {}
        self._launches: deque[float] = deque(maxlen=_REMEMBERED)
        self._starts: deque[float] = deque(maxlen=_REMEMBERED)
        machines.subscribe_arrived(self._arrived)

    async def run(self) -> None:
        """Sizes standby until cancelled, while it leads."""
        await repeat(self.size, every_s=_AGAIN_S, on_failure="standby.machines-not-sized")

    async def size(self) -> None:
        """Tells the provider where a number has changed; one that fails is told again."""
        if not self._is_leading():
            return
        now, refill_s = self._clock.now(), self._climbs().refill_s
        for kind, wishes in self._wishes.items():
            worth = wishes.worth(most=self._most, now=now, refill_s=refill_s)
            self._machines.let_idle(kind, worth.idle)
            if self._machines.held(kind) == worth.stopped:
                continue
            try:
                await self._machines.hold(kind, worth.stopped)
            except PlatformError as error:
                log.warning("standby.machines-refused", kind=kind, error=error.detail)
                continue
            log.info("standby.machines", kind=kind, **asdict(worth))

    def _climbs(self) -> Climbs:
        """As they were measured; assumed until there are some."""
        assumed = Climbs()
        return Climbs(
            median(self._launches) if self._launches else assumed.launch_s,
            median(self._starts) if self._starts else assumed.start_s,
        )

    def _arrived(self, arrival: Arrival) -> None:
        if not arrival.was_idle:
            (self._starts if arrival.was_stopped else self._launches).append(arrival.seconds)
        revision = self._deployments.live(arrival.owner)
        if revision is None:
            return
        self._wishes.setdefault(arrival.kind, Wishes()).add(
            at=arrival.wished_at,
            cold_penalty=revision.spec.scaling.cold_penalty,
            climbs=self._climbs(),
        )
