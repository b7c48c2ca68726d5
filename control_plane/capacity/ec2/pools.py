"""One Auto Scaling group as a value, and in which order groups are asked; pure."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from control_plane.capacity.ec2 import tags
from control_plane.capacity.port import CPU, MachineKind, Need
from infra.contracts.base import NodeId

_MIB: Final = 1 << 20
_OF_MEMORY: Final = 15 / 16  # what its kernel leaves of an instance's nominal memory

# Lifecycle states: userguide/ec2-auto-scaling-lifecycle and userguide/warm-pool-instance-lifecycle
_COMING_OR_THERE: Final = frozenset({"Pending", "Pending:Wait", "Pending:Proceed", "InService"})
_READY_IN_STANDBY: Final = frozenset({"Warmed:Stopped", "Warmed:Running", "Warmed:Hibernated"})
_INTO_STANDBY: Final = frozenset(
    {"Warmed:Pending", "Warmed:Pending:Wait", "Warmed:Pending:Proceed"}
)


class Purchase(StrEnum):
    """How the instances of a group are paid for."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"


@dataclass(frozen=True, slots=True)
class Shape:
    """What an instance type has."""

    memory_bytes: int
    gpus: int = 0
    gpu_memory_bytes: int = 0

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> "Shape":
        """Of one entry of DescribeInstanceTypes."""
        memory_bytes = described["MemoryInfo"]["SizeInMiB"] * _MIB
        gpus = described.get("GpuInfo", {}).get("Gpus", [])
        if not gpus:
            return cls(memory_bytes)
        return cls(
            memory_bytes,
            sum(gpu.get("Count", 1) for gpu in gpus),
            gpus[0].get("MemoryInfo", {}).get("SizeInMiB", 0) * _MIB,
        )


@dataclass(frozen=True, slots=True)
class WarmPool:
    """What a group keeps in standby: as many as it should, and those that are there.

    The group fills it up to the larger of `wanted` and `prepared` less its desired capacity.
    """

    wanted: int
    prepared: int
    is_reusing: bool
    state: str = "Stopped"
    ready: tuple[NodeId, ...] = ()
    coming: tuple[NodeId, ...] = ()

    @classmethod
    def read(
        cls, configured: Mapping[str, Any], instances: Iterable[Mapping[str, Any]]
    ) -> "WarmPool":
        """Of DescribeWarmPool."""
        by_state = [(it["LifecycleState"], NodeId(it["InstanceId"])) for it in instances]
        reuse = configured.get("InstanceReusePolicy") or {}
        return cls(
            wanted=int(configured.get("MinSize") or 0),
            prepared=int(configured.get("MaxGroupPreparedCapacity") or 0),
            is_reusing=bool(reuse.get("ReuseOnScaleIn")),
            state=configured.get("PoolState") or "Stopped",
            ready=tuple(it for state, it in by_state if state in _READY_IN_STANDBY),
            coming=tuple(it for state, it in by_state if state in _INTO_STANDBY),
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """One group: one instance type of one kind, bought in one way.

    `machines` are those that come or serve, `others` those that leave.
    """

    name: str
    kind: MachineKind
    instance_type: str
    purchase: Purchase
    price: float
    zones: tuple[str, ...]
    desired: int
    most: int
    machines: tuple[NodeId, ...] = ()
    others: tuple[NodeId, ...] = ()
    warm: WarmPool | None = None

    @classmethod
    def read(cls, group: Mapping[str, Any], warm: WarmPool | None) -> "Pool":
        """Of one entry of DescribeAutoScalingGroups. Raises ValueError where a tag is wrong."""
        told = {tag["Key"]: tag["Value"] for tag in group.get("Tags", [])}
        states = [(it["LifecycleState"], NodeId(it["InstanceId"])) for it in group["Instances"]]
        return cls(
            name=group["AutoScalingGroupName"],
            kind=MachineKind(told.get(tags.GPU_CLASS) or CPU),
            instance_type=told.get(tags.INSTANCE_TYPE, ""),
            purchase=Purchase(told.get(tags.PURCHASE, Purchase.ON_DEMAND)),
            price=float(told.get(tags.PRICE_PER_HOUR) or math.inf),
            zones=tuple(group["AvailabilityZones"]),
            desired=int(group["DesiredCapacity"]),
            most=int(group["MaxSize"]),
            machines=tuple(it for state, it in states if state in _COMING_OR_THERE),
            others=tuple(it for state, it in states if state not in _COMING_OR_THERE),
            warm=warm,
        )

    @property
    def in_standby(self) -> tuple[NodeId, ...]:
        return () if self.warm is None else (*self.warm.ready, *self.warm.coming)

    @property
    def keeps_stopped(self) -> bool:
        """Whether a machine that is scaled in goes back to standby."""
        return self.warm is not None and self.warm.is_reusing


def suits(pool: Pool, shape: Shape, need: Need) -> bool:
    """Whether a machine of the pool can hold it."""
    wish = need.gpus
    return (
        need.suits(pool.kind)
        and wish.count <= shape.gpus
        and (wish.count == 0 or wish.memory_bytes <= shape.gpu_memory_bytes)
        and need.memory_bytes <= shape.memory_bytes * _OF_MEMORY
    )


def by_price(pools: Iterable[Pool]) -> list[Pool]:
    """The cheapest first; what costs the same, or nobody knows what, by name."""
    return sorted(pools, key=lambda pool: (pool.price, pool.name))


def drift(pool: Pool, *, on_their_way: int, gone: Collection[NodeId] = frozenset()) -> int | None:
    """What the group's desired capacity should be, where it is not; `gone` are those that have
    ended, which a group notices later.

    Only what was asked for here may come: a machine that was lost is replaced by who needs it,
    not by the group; and a group that somebody made smaller does not end what serves.
    """
    alive = [machine for machine in pool.machines if machine not in gone]
    should = min(pool.most, len(alive) + on_their_way)
    return None if should == pool.desired else should
