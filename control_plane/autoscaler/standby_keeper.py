"""Keeps what nodes hold part-way up the ladder in step with models, nodes and starts."""

import math
from collections import deque
from collections.abc import Callable
from statistics import median

from control_plane.deployments.service import Deployments
from control_plane.fleet.replica import Replica
from control_plane.fleet.standby import (
    NodeClass,
    StandbyLimits,
    Wishes,
    class_of,
    size_standby,
    start_of,
    wishes_of,
)
from control_plane.fleet.standby_demand import Starts
from control_plane.fleet.state import Fleet
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung, Stage

_ASSUMED_RUNTIME_S = 2.0  # before a start without a parked worker was measured
_REMEMBERED = 5  # of those
_AGAIN_S = 60.0  # what starts are worth is asked as often


class StandbyKeeper:
    """Owns what is remembered of starts, a class of nodes."""

    def __init__(
        self,
        deployments: Deployments,
        fleet: Fleet,
        *,
        limits: StandbyLimits,
        is_settled: Callable[[str], bool],
    ) -> None:
        self._deployments = deployments
        self._fleet = fleet
        self._limits = limits
        self._is_settled = is_settled
        self._starts: dict[NodeClass, Starts] = {}
        self._runtimes: deque[float] = deque(maxlen=_REMEMBERED)
        self._sized_at = -math.inf
        self._wishes: Wishes | None = None  # of what is deployed, until that changes
        fleet.subscribe(self._replica_changed)

    def tick(self, now: float) -> None:
        """Looks again where that has not been done for a while."""
        if now - self._sized_at >= _AGAIN_S:
            self.size(now)

    def redeployed(self) -> None:
        """What is in traffic has changed; the next tick looks again."""
        self._wishes = None
        self._sized_at = -math.inf

    def size(self, now: float) -> None:
        """Tells every node what to keep."""
        self._sized_at = now
        nodes = self._fleet.nodes()
        if not nodes:
            return
        most = self._limits.parked * len(nodes)
        worth = {kind: starts.worth(most=most, now=now) for kind, starts in self._starts.items()}
        if self._wishes is None:
            self._wishes = wishes_of(self._deployments.in_traffic())
        sizes = size_standby(
            self._wishes, nodes, limits=self._limits, worth=worth, is_settled=self._is_settled
        )
        for node_id, standby in sizes.items():
            self._fleet.set_standby(node_id, standby)

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        """A replica got ready. One that woke from sleep, or ran before us, had no use for a parked
        worker; nor has one whose model wishes for none."""
        is_news = after.state is ReplicaState.READY and before is not None and before.is_loading
        node = self._fleet.node(after.node_id)
        if not is_news or node is None or after.is_adopted or after.from_rung is Rung.WEIGHTS:
            return
        runtime_s = sum(it.seconds for it in after.stages if it.stage is Stage.RUNTIME)
        climb_s = after.since - after.created_at
        if after.from_rung is not Rung.RUNTIME:
            self._runtimes.append(runtime_s)
        spared_s = median(self._runtimes) if self._runtimes else _ASSUMED_RUNTIME_S
        if after.from_rung is Rung.RUNTIME:
            climb_s += spared_s
        if after.revision.spec.scaling.standby:
            start = start_of(
                after.revision, at=after.created_at, runtime_s=spared_s, climb_s=climb_s
            )
            kind = class_of(node, node.image_for(after.revision))
            self._starts.setdefault(kind, Starts()).add(start)
