"""The machines of a view as the port tells them, and what has ended since the one before."""

from collections.abc import Iterator
from typing import Final

from control_plane.capacity.ec2.pools import Pool
from control_plane.capacity.ec2.view import View
from control_plane.capacity.port import CapacityEvent, Ended, Leaving, Machine
from infra.clock import Clock
from infra.contracts.base import NodeId
from infra.contracts.stage import Rung

# A GPU instance boots in half a minute; its user data may install for some more.
_BOOT_S: Final = 600.0
_SHOWN_LATE_S: Final = 60.0  # a launched instance may be missing from its group for so long
_DEAD: Final = frozenset({"shutting-down", "terminated", "stopping", "stopped"})


class Ec2Machines:
    """Owns the last view, and what was launched here and is not in it yet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._view = View()
        self._came: dict[NodeId, tuple[Pool, float]] = {}  # which pool gave it, and when
        self._gone: set[NodeId] = set()  # that events told of before a view did

    @property
    def view(self) -> View:
        return self._view

    def all(self) -> tuple[Machine, ...]:
        return tuple(self._running()) + tuple(self._waiting())

    def runs(self, node_id: NodeId) -> bool:
        """Whether it is on the rung `node`, or on its way there."""
        return any(machine.node_id == node_id for machine in self._running())

    def launched_at(self, node_id: NodeId) -> float:
        """Of its last launch or start; of one that is not known yet, now."""
        came = self._came.get(node_id)
        told = self._view.instances.get(node_id)
        at = max(came[1] if came else 0.0, told.launched_at if told else 0.0)
        return at or self._clock.now()

    def came(self, node_id: NodeId, pool: Pool) -> None:
        """It was launched or started a moment ago."""
        self._gone.discard(node_id)
        self._came[node_id] = (pool, self._clock.now())

    def left(self, node_id: NodeId) -> None:
        """It is gone, or goes into standby, whatever the last view says."""
        self._came.pop(node_id, None)
        self._gone.add(node_id)

    def replace(self, view: View) -> list[CapacityEvent]:
        """Takes a new view; tells which machines ran in the one before and do no more, or not for
        long: where the group lets one go, its agent may drain until the hook is completed."""
        before = {machine.node_id for machine in self._running()}
        self._view = view
        now = self._clock.now()
        shown = {it for pool in view.pools for it in pool.machines}
        for node_id, (_, at) in tuple(self._came.items()):
            if node_id in shown or now - at > _SHOWN_LATE_S:
                del self._came[node_id]
        self._gone &= shown
        after = {machine.node_id for machine in self._running()}
        return [self._gone_from(node_id) for node_id in sorted(before - after)]

    def _gone_from(self, node_id: NodeId) -> CapacityEvent:
        instance = self._view.instances.get(node_id)
        if instance is None:
            return Ended(node_id, "its instance is terminated")
        pool = self._view.pool_of(node_id)
        if pool is None:
            return Ended(node_id, "its instance was taken out of its group")
        if node_id in pool.others and instance.state not in _DEAD:
            return Leaving(node_id, "its group lets it go")
        return Ended(node_id, f"its instance leaves its group ({instance.state})")

    def _running(self) -> Iterator[Machine]:
        shown: set[NodeId] = set()
        for pool in self._view.pools:
            for node_id in pool.machines:
                instance = self._view.instances.get(node_id)
                is_dead = instance is not None and instance.state in _DEAD
                is_late = node_id in self._came  # the view may be older than its start
                if node_id in self._gone or (is_dead and not is_late):
                    continue
                shown.add(node_id)
                yield self._machine(node_id, pool, Rung.NODE)
        for node_id, (pool, _) in self._came.items():
            if node_id not in shown:
                yield self._machine(node_id, pool, Rung.NODE)

    def _waiting(self) -> Iterator[Machine]:
        for pool in self._view.pools:
            for node_id in pool.in_standby:
                if node_id not in self._came:
                    yield self._machine(node_id, pool, Rung.STOPPED)

    def _machine(self, node_id: NodeId, pool: Pool, rung: Rung) -> Machine:
        at = self.launched_at(node_id)
        return Machine(node_id, at, is_elastic=True, boot_s=_BOOT_S, kind=pool.kind, rung=rung)
