"""Warm pools: machines that start from them, go back to them, and how many wait there."""

from collections.abc import Iterable
from typing import Final

import structlog

from control_plane.capacity.ec2.growing import Growing
from control_plane.capacity.ec2.pools import Pool, WarmPool, by_price
from control_plane.capacity.ec2.refusals import Refusal, error_after
from control_plane.capacity.port import MachineKind
from infra.contracts.base import NodeId
from infra.errors import BadSpec, NoCapacity

log = structlog.get_logger()

_MOST: Final = 1000


class WarmPools:
    """What is done with the warm pools of a deployment."""

    def __init__(self, growing: Growing) -> None:
        self._growing = growing
        self._wanted: dict[MachineKind, int] = {}

    async def start(self, pools: Iterable[Pool]) -> tuple[NodeId, Pool] | None:
        """A machine, and of which of these pools: the first that has one ready, or None.

        Raises as `Launching.launch` where those that have one cannot start it.
        """
        refusals: list[Refusal] = []
        for pool in pools:
            if pool.warm is None or not pool.warm.ready:
                continue
            try:
                return await self._growing.grow(pool.name), pool
            except (NoCapacity, BadSpec) as error:
                code = error.facts.get("code", "Refused")
                log.info("ec2.not-started", pool=pool.name, code=code)
                refusals.append(Refusal(pool.name, code, error.detail))
        if refusals:
            raise error_after(refusals)
        return None

    async def hold(self, pools: Iterable[Pool], kind: MachineKind, stopped: int) -> None:
        """So many wait of a kind, all in its cheapest group that has a warm pool.

        Surplus that came back goes.
        """
        self._wanted[kind] = stopped
        having = tuple(pools)
        await self.keep(having)
        for pool in having:
            if pool.kind == kind and pool.warm is not None and _has_surplus(pool.warm, stopped):
                await self._growing.put_warm_pool(pool, pool.warm.wanted, prepared=pool.warm.wanted)

    async def keep(self, pools: Iterable[Pool]) -> None:
        """Sets right what differs from what was wanted; of kinds never spoken of, nothing."""
        having = [pool for pool in by_price(pools) if pool.warm is not None]
        for kind, stopped in self._wanted.items():
            for place, pool in enumerate(it for it in having if it.kind == kind):
                wanted = min(stopped, pool.most, _MOST) if place == 0 else 0
                if pool.warm is not None and pool.warm.wanted != wanted:
                    log.info("ec2.standby", pool=pool.name, stopped=wanted)
                    await self._growing.put_warm_pool(pool, wanted, prepared=wanted)


def _has_surplus(warm: WarmPool, stopped: int) -> bool:
    return warm.wanted == stopped and len(warm.ready) + len(warm.coming) > stopped
