"""A group's desired capacity: one more and which instance that became, one less, and set right."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final

import structlog

from control_plane.capacity.ec2.calls import Calls
from control_plane.capacity.ec2.pools import Pool, drift
from control_plane.capacity.ec2.refusals import code_in, error_of
from control_plane.capacity.ec2.view import Reader
from infra.clock import Clock
from infra.contracts.base import NodeId
from infra.errors import PlatformError

log = structlog.get_logger()

_CLOCK_SLACK_S: Final = 1.0  # activities are stamped in AWS's clock, in whole seconds
_FAILED: Final = frozenset({"Failed", "Cancelled"})


class Growing:
    """Owns the desired capacity of every group; a group's lock guards reading and setting it."""

    def __init__(
        self,
        calls: Calls,
        reader: Reader,
        *,
        clock: Clock,
        look_s: float = 1.0,
        patience_s: float = 60.0,
    ) -> None:
        self._calls = calls
        self._reader = reader
        self._clock = clock
        self._look_s = look_s
        self._patience_s = patience_s
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: Counter[str] = Counter()  # for an instance each
        self._seen: dict[str, set[NodeId]] = {}  # instances that nobody waits for, while some do

    def waiting(self, name: str) -> int:
        """How many wait for an instance of a group that did not show one yet."""
        return self._waiting[name]

    async def is_full(self, name: str) -> bool:
        """Whether a group may have no more, now."""
        pool = await self._pool(name)
        return pool.desired >= pool.most

    async def grow(self, name: str) -> NodeId:
        """One more instance, from standby where one is ready there.

        Raises what the scaling activity failed with, NoCapacity where nothing came.
        """
        began_at = self._clock.now()
        async with self._locks[name]:
            pool = await self._pool(name)
            if pool.desired >= pool.most:
                raise error_of("MaxSizeReached", f"{name} has {pool.most} already")
            if not self._waiting[name]:
                self._seen[name] = {*pool.machines, *pool.others}
            await self._set(name, pool.desired + 1)
            self._waiting[name] += 1
        try:
            node_id = await self._arrival(name, began_at)
        except BaseException:
            self._waiting[name] -= 1
            await self.settle(name)
            raise
        self._waiting[name] -= 1
        return node_id

    async def shrink(self, name: str, node_id: NodeId) -> None:
        """One less, and it is this one: all others are protected from scale-in. May be repeated."""
        async with self._locks[name]:
            pool = await self._pool(name)
            if node_id not in pool.machines:
                return
            await self._calls(
                self._calls.clients.autoscaling.set_instance_protection,
                AutoScalingGroupName=name,
                InstanceIds=[node_id],
                ProtectedFromScaleIn=False,
            )
            desired = max(0, len(pool.machines) - 1 + self._waiting[name])
            if pool.warm is not None:  # there has to be room for one more when it arrives
                await self.put_warm_pool(
                    pool, pool.warm.wanted, prepared=desired + len(pool.in_standby) + 1
                )
            await self._set(name, desired)

    async def end(self, name: str, node_id: NodeId) -> None:
        """One less, and it is this one, which does not wait in standby. May be repeated."""
        async with self._locks[name]:
            pool = await self._pool(name)
            if node_id not in pool.machines:
                return
            await self._make_no_room(pool, max(0, pool.desired - 1))
            await self._calls(
                self._calls.clients.autoscaling.terminate_instance_in_auto_scaling_group,
                InstanceId=node_id,
                ShouldDecrementDesiredCapacity=True,
            )

    async def settle(self, name: str, *, gone: Collection[NodeId] = frozenset()) -> None:
        """Takes back what was asked for and did not come, or what nobody here asked for."""
        async with self._locks[name]:
            pool = await self._pool(name)
            should = drift(pool, on_their_way=self._waiting[name], gone=gone)
            if should is not None:
                log.info("ec2.settled", pool=name, desired=pool.desired, should=should)
                await self._make_no_room(pool, should)
                await self._set(name, should)

    async def put_warm_pool(self, pool: Pool, wanted: int, *, prepared: int) -> None:
        """Sets its size (API_PutWarmPool): absolute where both are the same, else it follows what
        the group has less than `prepared`. What else it is stays."""
        assert pool.warm is not None, "only of a group that has a warm pool"
        await self._calls(
            self._calls.clients.autoscaling.put_warm_pool,
            AutoScalingGroupName=pool.name,
            MinSize=wanted,
            MaxGroupPreparedCapacity=prepared,
            PoolState=pool.warm.state,
            InstanceReusePolicy={"ReuseOnScaleIn": pool.warm.is_reusing},
        )

    async def _make_no_room(self, pool: Pool, desired: int) -> None:
        """Where desired shrinks and nothing comes back, nothing new may be put in its place."""
        warm = pool.warm
        if warm is not None and warm.wanted + desired < warm.prepared:
            await self.put_warm_pool(pool, warm.wanted, prepared=warm.wanted + desired)

    async def _arrival(self, name: str, began_at: float) -> NodeId:
        while self._clock.now() - began_at < self._patience_s:
            pool = await self._pool(name)
            seen = self._seen[name]
            for node_id in pool.machines:
                if node_id not in seen:
                    seen.add(node_id)
                    return node_id
            if (failure := await self._failure(name, began_at)) is not None:
                raise failure
            await asyncio.sleep(self._look_s)
        raise error_of("NothingCame", f"{name} showed no instance in {self._patience_s:g} s")

    async def _failure(self, name: str, began_at: float) -> PlatformError | None:
        answer = await self._calls(
            self._calls.clients.autoscaling.describe_scaling_activities,
            AutoScalingGroupName=name,
            MaxRecords=10,
        )
        for activity in answer["Activities"]:
            if _is_failure(activity, since=began_at - _CLOCK_SLACK_S):
                message = activity.get("StatusMessage", "")
                return error_of(code_in(message), message)
        return None

    async def _pool(self, name: str) -> Pool:
        pool = await self._reader.pool(name)
        if pool is None:
            raise error_of("NothingCame", f"the group {name} is gone")
        return pool

    async def _set(self, name: str, desired: int) -> None:
        await self._calls(
            self._calls.clients.autoscaling.set_desired_capacity,
            AutoScalingGroupName=name,
            DesiredCapacity=desired,
            HonorCooldown=False,
        )


def _is_failure(activity: Mapping[str, Any], *, since: float) -> bool:
    is_launch = activity.get("Description", "").startswith("Launching")
    has_failed = activity["StatusCode"] in _FAILED
    return is_launch and has_failed and activity["StartTime"].timestamp() >= since
