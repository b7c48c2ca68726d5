"""A control plane in memory, for tests: versions, leases, and everything it was told."""

import asyncio
from dataclasses import dataclass, field

from infra.clock import SystemClock
from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.node import (
    ClockReading,
    DesiredState,
    NodeLease,
    NodeRegistration,
    NodeReport,
    ReplicaReport,
)
from worker.node.control_plane import UnknownNode, Unreachable


@dataclass
class FakeControlPlane:
    """Wants what `want` says; while `is_down` nothing is answered."""

    lease_s: float = 9.0
    clock: SystemClock = field(default_factory=SystemClock.start)
    is_down: bool = False
    address: str | None = "127.0.0.1"
    registrations: list[NodeRegistration] = field(default_factory=list)
    reports: list[NodeReport] = field(default_factory=list)
    replicas: dict[ReplicaId, ReplicaReport] = field(default_factory=dict)
    state: DesiredState = field(
        default_factory=lambda: DesiredState(version=0, standby=0, replicas=())
    )
    _known: set[NodeId] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def want(self, state: DesiredState) -> None:
        """The desired state from now on."""
        self.state = state
        self._wake()

    def forget_nodes(self) -> None:
        """As after a restart: every node is unknown."""
        self._known.clear()
        self._wake()

    async def register(self, registration: NodeRegistration) -> NodeLease:
        self._answer_unless_down()
        self.registrations.append(registration)
        self._known.add(registration.node_id)
        self.replicas |= {report.replica_id: report for report in registration.replicas}
        return NodeLease(
            node_id=registration.node_id, lease_s=self.lease_s, clock=self.clock.reading()
        )

    async def desired(self, node_id: NodeId, *, after: int, wait_s: float) -> DesiredState:
        self._check(node_id)
        try:
            async with asyncio.timeout(wait_s):
                while self.state.version <= after:
                    await self._changed.wait()
                    self._check(node_id)
        except TimeoutError:
            pass
        return self.state

    async def report(self, report: NodeReport) -> ClockReading:
        self._check(report.node_id)
        self.reports.append(report)
        self.replicas |= {replica.replica_id: replica for replica in report.replicas}
        return self.clock.reading()

    async def close(self) -> None:
        """Nothing to close."""

    def _check(self, node_id: NodeId) -> None:
        self._answer_unless_down()
        if node_id not in self._known:
            raise UnknownNode(node_id)

    def _answer_unless_down(self) -> None:
        if self.is_down:
            raise Unreachable("connection refused")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
