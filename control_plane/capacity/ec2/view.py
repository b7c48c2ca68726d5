"""What AWS says that there is: groups, warm pools, instances; read anew each time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import structlog

from control_plane.capacity.ec2 import tags
from control_plane.capacity.ec2.calls import Calls
from control_plane.capacity.ec2.pools import Pool, Shape, WarmPool
from infra.contracts.base import NodeId

log = structlog.get_logger()

_ALIVE: Final = ("pending", "running", "stopping", "stopped")
_DEFAULT_TTL_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance with our tag; `launched_at` is of its last launch or start."""

    node_id: NodeId
    launched_at: float
    state: str
    ttl_s: float = _DEFAULT_TTL_S

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> "Instance":
        """Of one entry of DescribeInstances."""
        told = {tag["Key"]: tag["Value"] for tag in described.get("Tags", [])}
        launched: datetime = described["LaunchTime"]
        try:
            ttl_s = float(told.get(tags.TTL_S, _DEFAULT_TTL_S))
        except ValueError:
            ttl_s = _DEFAULT_TTL_S
        return cls(
            NodeId(described["InstanceId"]),
            launched.timestamp(),
            described["State"]["Name"],
            ttl_s,
        )


@dataclass(frozen=True, slots=True)
class View:
    """Everything of one deployment at one time."""

    pools: tuple[Pool, ...] = ()
    instances: Mapping[NodeId, Instance] = field(default_factory=lambda: MappingProxyType({}))

    def pool_of(self, node_id: NodeId) -> Pool | None:
        """The group that a machine of ours belongs to, whatever it does there."""
        for pool in self.pools:
            if node_id in {*pool.machines, *pool.others, *pool.in_standby}:
                return pool
        return None

    def orphans(self, *, now: float) -> tuple[NodeId, ...]:
        """Instances of ours of no group, for longer than they may be."""
        return tuple(
            it.node_id
            for it in self.instances.values()
            if now - it.launched_at > it.ttl_s and self.pool_of(it.node_id) is None
        )


class Reader:
    """Reads views; types of instances are read once."""

    def __init__(self, calls: Calls, deployment: str) -> None:
        self._calls = calls
        self._ours = [{"Name": f"tag:{tags.DEPLOYMENT}", "Values": [deployment]}]
        self._shapes: dict[str, Shape] = {}

    async def view(self) -> View:
        """Instances are read before groups, so that none is missed that just came to one."""
        instances = await self._instances()
        groups = await self._calls.pages(
            "describe_auto_scaling_groups",
            self._calls.clients.autoscaling,
            "AutoScalingGroups",
            Filters=self._ours,
        )
        pools = [pool for group in groups if (pool := await self._pool(group)) is not None]
        return View(tuple(pools), MappingProxyType(instances))

    async def pool(self, name: str) -> Pool | None:
        """One group as it is now; None where it is gone."""
        answer = await self._calls(
            self._calls.clients.autoscaling.describe_auto_scaling_groups,
            AutoScalingGroupNames=[name],
        )
        groups = answer["AutoScalingGroups"]
        return await self._pool(groups[0]) if groups else None

    async def shape(self, instance_type: str) -> Shape:
        """What instances of a type have. Raises what `Calls` raises."""
        if instance_type not in self._shapes:
            answer = await self._calls(
                self._calls.clients.ec2.describe_instance_types, InstanceTypes=[instance_type]
            )
            self._shapes[instance_type] = Shape.read(answer["InstanceTypes"][0])
        return self._shapes[instance_type]

    async def _pool(self, group: Mapping[str, Any]) -> Pool | None:
        warm = None
        if group.get("WarmPoolConfiguration"):
            warm = WarmPool.read(
                group["WarmPoolConfiguration"],
                await self._calls.pages(
                    "describe_warm_pool",
                    self._calls.clients.autoscaling,
                    "Instances",
                    AutoScalingGroupName=group["AutoScalingGroupName"],
                ),
            )
        try:
            return Pool.read(group, warm)
        except ValueError as error:
            log.error("ec2.bad-tag", group=group["AutoScalingGroupName"], why=str(error))
            return None

    async def _instances(self) -> dict[NodeId, Instance]:
        reservations = await self._calls.pages(
            "describe_instances",
            self._calls.clients.ec2,
            "Reservations",
            Filters=[*self._ours, {"Name": "instance-state-name", "Values": list(_ALIVE)}],
        )
        found = (Instance.read(it) for one in reservations for it in one["Instances"])
        return {instance.node_id: instance for instance in found}
