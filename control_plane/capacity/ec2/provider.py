"""Machines of EC2: Auto Scaling groups with warm pools, as a provider of the port."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from control_plane.capacity.ec2.calls import Calls
from control_plane.capacity.ec2.events import EventQueue, Heard
from control_plane.capacity.ec2.growing import Growing
from control_plane.capacity.ec2.launching import Launching
from control_plane.capacity.ec2.machines import Ec2Machines
from control_plane.capacity.ec2.pools import Pool, by_price, drift, suits
from control_plane.capacity.ec2.reaper import Reaper
from control_plane.capacity.ec2.standby import WarmPools
from control_plane.capacity.ec2.view import Reader
from control_plane.capacity.port import (
    CapacityEvent,
    CapacityListener,
    Ended,
    LaunchToken,
    Leaving,
    Machine,
    MachineKind,
    Need,
)
from infra.clock import Clock
from infra.contracts.base import NodeId
from infra.errors import BadSpec, PlatformError
from infra.supervise import TaskSet

log = structlog.get_logger()

_REMEMBERED_TOKENS: Final = 1000
_AFTER_FAILURE_S: Final = 5.0


class Ec2Capacity:
    """One deployment's groups. What there is, is read from AWS, every `look_s` and when an event
    says so; nothing is kept elsewhere, so a control plane that starts finds all of it again.

    A node's id is its instance's. Only the control plane that leads looks and acts.
    """

    def __init__(
        self,
        calls: Calls,
        reader: Reader,
        growing: Growing,
        *,
        clock: Clock,
        events: EventQueue | None = None,
        is_leading: Callable[[], bool] = lambda: True,
        look_s: float = 15.0,
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._growing = growing
        self._clock = clock
        self._events = events
        self._is_leading = is_leading
        self._look_s = look_s
        self._launching = Launching(calls, growing, clock=clock)
        self._warm_pools = WarmPools(growing)
        self._reaper = Reaper(calls, clock=clock)
        self._machines = Ec2Machines(clock)
        self._tokens: dict[LaunchToken, NodeId] = {}
        self._drifted: set[str] = set()  # groups that were not as they should be, a look ago
        self._look_again = asyncio.Event()
        self._tasks = TaskSet()
        self._listeners: list[CapacityListener] = []

    async def open(self) -> None:
        await self._try_to_look()
        self._tasks.start(self._watch(), name="ec2 view")
        if self._events is not None:
            self._tasks.start(self._listen(self._events), name="ec2 events")

    async def close(self) -> None:
        await self._tasks.close()

    async def launch(self, need: Need, *, token: LaunchToken) -> NodeId:
        if (known := self._known(token)) is not None:
            return known
        pools = await self._suiting(need)
        return self._came(*await self._launching.launch(pools, token), token)

    async def start(self, need: Need, *, token: LaunchToken) -> NodeId | None:
        if (known := self._known(token)) is not None:
            return known
        if not any(pool.in_standby for pool in self._machines.view.pools):
            return None
        started = await self._warm_pools.start(await self._suiting(need))
        return None if started is None else self._came(*started, token)

    async def stop(self, node_id: NodeId) -> None:
        pool = await self._pool_of(node_id)
        if pool is None or node_id in pool.in_standby:
            return
        if not pool.keeps_stopped:
            await self.terminate(node_id)
            return
        self._machines.left(node_id)
        try:
            await self._growing.shrink(pool.name, node_id)
        except BadSpec as error:  # it is not InService yet, so it can only be ended
            log.info("ec2.not-stopped", node=node_id, why=error.detail)
            await self.terminate(node_id)
        self._look_again.set()

    async def terminate(self, node_id: NodeId) -> None:
        pool = await self._pool_of(node_id)
        if pool is None or node_id in pool.others:
            return
        self._machines.left(node_id)
        if (
            node_id in pool.in_standby
        ):  # API_TerminateInstanceInAutoScalingGroup takes none of those
            await self._calls(self._calls.clients.ec2.terminate_instances, InstanceIds=[node_id])
        else:
            await self._growing.end(pool.name, node_id)
        self._look_again.set()

    async def hold(self, kind: MachineKind, stopped: int) -> None:
        await self._warm_pools.hold(self._machines.view.pools, kind, stopped)
        self._look_again.set()

    def describe(self) -> tuple[Machine, ...]:
        return self._machines.all()

    def subscribe(self, listener: CapacityListener) -> None:
        self._listeners.append(listener)

    async def look(self) -> None:
        """Reads what there is, tells what has ended, and sets right what nobody here wanted."""
        for event in self._machines.replace(await self._reader.view()):
            self._say(event)
        if not self._is_leading():
            return
        await self._settle()
        await self._warm_pools.keep(self._machines.view.pools)
        await self._reaper.reap(self._machines.view)

    # -- which machines ------------------------------------------------------------------------

    async def _suiting(self, need: Need) -> list[Pool]:
        """The pools that can hold it, cheapest first. Raises BadSpec where there is none."""
        if not self._machines.view.pools:
            await self.look()
        pools = self._machines.view.pools
        suiting = [
            pool
            for pool in by_price(pools)
            if suits(pool, await self._reader.shape(pool.instance_type), need)
        ]
        if not suiting:
            kinds = ", ".join(sorted({pool.kind for pool in pools})) or "none"
            raise BadSpec(
                "no machine of this deployment could hold the replica",
                hint=f"it has groups of these classes: {kinds}",
                tried=[],
            )
        return suiting

    async def _pool_of(self, node_id: NodeId) -> Pool | None:
        """The group of a machine, as it is now; None for one that is not ours."""
        pool = self._machines.view.pool_of(node_id)
        if pool is None and self._machines.runs(node_id):
            await self.look()
            pool = self._machines.view.pool_of(node_id)
        if pool is None:
            return None
        fresh = await self._reader.pool(pool.name)
        is_there = fresh is not None and node_id in {
            *fresh.machines,
            *fresh.others,
            *fresh.in_standby,
        }
        return fresh if is_there else None

    def _known(self, token: LaunchToken) -> NodeId | None:
        node_id = self._tokens.get(token)
        return node_id if node_id is not None and self._machines.runs(node_id) else None

    def _came(self, node_id: NodeId, pool: Pool, token: LaunchToken) -> NodeId:
        if len(self._tokens) >= _REMEMBERED_TOKENS:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[token] = node_id
        self._machines.came(node_id, pool)
        self._look_again.set()
        return node_id

    # -- watching ------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._look_s):
                    await self._look_again.wait()
            except TimeoutError:
                pass
            self._look_again.clear()
            if self._is_leading():
                await self._try_to_look()

    async def _try_to_look(self) -> None:
        try:
            await self.look()
        except PlatformError as error:
            log.warning("ec2.not-seen", detail=error.detail, hint=error.hint)
        except Exception:
            log.exception("ec2.not-seen")

    async def _settle(self) -> None:
        """What has drifted for two looks is set right: what AWS says may be a moment old."""
        drifted = {
            pool.name
            for pool in self._machines.view.pools
            if drift(pool, on_their_way=self._growing.waiting(pool.name)) is not None
        }
        for name in drifted & self._drifted:
            await self._growing.settle(name)
        self._drifted = drifted

    async def _listen(self, events: EventQueue) -> None:
        while True:
            began_at = self._clock.now()
            try:
                heard = await events.receive() if self._is_leading() else []
                for _, one in heard:
                    self._hear(one)
                await events.delete([handle for handle, _ in heard])
            except PlatformError as error:
                log.warning("ec2.not-heard", detail=error.detail, hint=error.hint)
                await asyncio.sleep(_AFTER_FAILURE_S)
            except Exception:
                log.exception("ec2.not-heard")
                await asyncio.sleep(_AFTER_FAILURE_S)
            else:
                if not heard:  # an endpoint that does not hold the poll is not asked at once
                    await asyncio.sleep(events.wait_s - (self._clock.now() - began_at))

    def _hear(self, heard: Heard) -> None:
        """Of machines that run here; what is older than its last start is of an earlier life."""
        self._look_again.set()
        match heard.event:
            case None:
                return
            case Ended(node_id) | Leaving(node_id) as event:
                if not self._machines.runs(node_id):
                    return
                if heard.at < self._machines.launched_at(node_id):
                    return
                if isinstance(event, Ended):
                    self._tasks.start(self._let_go(node_id), name=f"let {node_id} go")
                    self._machines.left(node_id)
                self._say(event)

    async def _let_go(self, node_id: NodeId) -> None:
        """Its group is not to replace it: who needs another machine asks for it."""
        pool = self._machines.view.pool_of(node_id)
        if pool is None:
            return
        try:
            await self._growing.settle(pool.name, gone={node_id})
        except PlatformError as error:
            log.warning("ec2.not-settled", pool=pool.name, detail=error.detail)

    def _say(self, event: CapacityEvent) -> None:
        log.info("ec2.said", node=event.node_id, reason=event.reason)
        for listener in self._listeners:
            listener(event)
