"""What node agents ask of the control plane: register, watch the desired state, report."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from control_plane.capacity.port import CapacityEvent, Ended
from control_plane.fleet.logbook import Logbook, LogEntry
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from control_plane.fleet.tokens import ReplicaToken
from infra.clock import Clock
from infra.contracts.base import NodeId, RevisionName
from infra.contracts.node import (
    ClockReading,
    DesiredState,
    Leaving,
    NodeLease,
    NodeRegistration,
    NodeReport,
    ReplicaReport,
)
from infra.contracts.revision import ReplicaState, Revision
from infra.errors import Conflict, Invalid, NotFound, ShuttingDown
from infra.loopback import is_loopback
from infra.supervise import repeat

log = structlog.get_logger()

LONGEST_WAIT_S = 60.0
_EVERYWHERE = frozenset({"0.0.0.0", "::"})  # one may listen there, and nobody can call it
_ADOPTABLE = frozenset({ReplicaState.ASSIGNED, ReplicaState.STARTING, ReplicaState.READY})


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long a node may be silent, and how often we look."""

    lease_s: float = 10.0
    look_s: float = 1.0


class NodeSessions:
    """One session a node: a lease that its reports renew, and a desired state it watches.

    A change of the desired state completes the waiting polls at once; there is no tick between.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        clock: Clock,
        read_clock: Callable[[], ClockReading],
        live: Callable[[RevisionName], Revision | None],
        token: ReplicaToken,
        logbook: Logbook,
        terms: LeaseTerms = LeaseTerms(),
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._read_clock = read_clock
        self._live = live
        self._token = token
        self._logbook = logbook
        self._terms = terms
        self._polls: dict[NodeId, set[asyncio.Future[None]]] = {}
        self._looked_at: float | None = None
        self._is_closed = False
        fleet.subscribe_desired(self._wake_polls)
        fleet.subscribe_nodes(self._node_changed)

    def register(self, registration: NodeRegistration, *, now: float) -> NodeLease:
        """A node is ours, with what already runs on it. May be repeated.

        Replicas we believed there and it does not have are LOST, save those it was not told of
        yet; replicas we do not know are adopted when their revision is in traffic, else the desired
        state, which does not list them, ends them.

        Raises Conflict where another machine is this node, and Invalid where nobody could reach
        its replicas.
        """
        self._check_identity(registration, now=now)
        self._check_host(registration)
        with self._fleet.one_change():
            self._join(registration, now=now)
        log.info("node.registered", node=registration.node_id, replicas=len(registration.replicas))
        return NodeLease(
            node_id=registration.node_id, lease_s=self._terms.lease_s, clock=self._read_clock()
        )

    async def desired(self, node_id: NodeId, after: int, wait_s: float) -> DesiredState:
        """The node's desired state, as soon as its version is not `after` or `wait_s` are over.

        Raises NotFound for a node that is not registered (any more): it registers again, and
        ShuttingDown instead of waiting once closed.
        """
        if self._known(node_id).version == after and wait_s > 0:
            if self._is_closed:
                raise ShuttingDown("the platform is stopping")
            await self._until_changed(node_id, min(wait_s, LONGEST_WAIT_S))
            self._known(node_id)
        return self._fleet.desired_state(node_id)

    def report(self, report: NodeReport, *, now: float) -> ClockReading:
        """News from a node; renews its lease. Our clock, for the node to compare with its own.

        Raises NotFound as `desired` does.
        """
        node_id = report.node_id
        self._known(node_id)
        with self._fleet.one_change():
            self._fleet.renew(node_id, lease_until=now + self._terms.lease_s)
            self._fleet.observe(report)
            for replica_report in report.replicas:
                self._fleet.hear(node_id, replica_report, now=now)
            if report.leaving is not None:
                self._depart(node_id, report.leaving)
            if report.is_leaving:
                self._fleet.leave(node_id, now=now, detail=f"node {node_id} stopped")
        for line in report.logs:
            replica = self._fleet.replica(line.replica_id)
            if replica is not None and replica.node_id == node_id:
                self._logbook.append(replica.model, LogEntry(line.at, line.replica_id, line.text))
        return self._read_clock()

    def expire(self, now: float) -> tuple[NodeId, ...]:
        """Nodes whose lease ran out leave; returns them.

        When we did not look for long (a stalled loop, a paused machine, a clock that jumped
        either way), silence may be ours: every lease then starts anew.
        """
        looked_at, self._looked_at = self._looked_at, now
        if looked_at is not None and not 0 <= now - looked_at <= self._longest_gap_s:
            self._start_leases_anew(now)
            return ()
        expired = tuple(node.node_id for node in self._fleet.nodes() if node.lease_until < now)
        for node_id in expired:
            log.warning("node.expired", node=node_id, lease_s=self._terms.lease_s)
            self._fleet.leave(
                node_id, now=now, detail=f"node {node_id} was silent for {self._terms.lease_s:g} s"
            )
        return expired

    def close(self) -> None:
        """Answers every poll now and refuses others, so that nobody's connection outlives us."""
        self._is_closed = True
        for node_id in tuple(self._polls):
            self._wake_polls(node_id)

    def heard(self, event: CapacityEvent) -> None:
        """Of a machine that is known to be gone nobody waits for the lease; one that will be taken
        away gets nothing new. May be repeated."""
        match event:
            case Ended(node_id, reason):
                self._fleet.leave(node_id, now=self._clock.now(), detail=reason)
            case _:
                self._depart(event.node_id, Leaving(reason=event.reason, at=event.at))

    def _depart(self, node_id: NodeId, leaving: Leaving) -> None:
        if node_id not in self._fleet.leaving():
            log.info("node.leaves", node=node_id, reason=leaving.reason, at=leaving.at)
        self._fleet.depart(node_id, leaving)

    async def watch_leases(self) -> None:
        """Expires leases until cancelled."""

        def look() -> None:
            self.expire(self._clock.now())

        await repeat(look, every_s=self._terms.look_s, on_failure="leases.not-expired")

    @property
    def _longest_gap_s(self) -> float:
        return max(2 * self._terms.look_s, self._terms.lease_s / 2)

    def _start_leases_anew(self, now: float) -> None:
        for node in self._fleet.nodes():
            self._fleet.renew(node.node_id, lease_until=now + self._terms.lease_s)

    def _known(self, node_id: NodeId) -> Node:
        node = self._fleet.node(node_id)
        if node is None:
            raise NotFound(f"node {node_id} is not registered", node=node_id)
        return node

    def _check_identity(self, registration: NodeRegistration, *, now: float) -> None:
        """An agent that started again is the node it was; one on another machine is not, as long
        as the first may be alive."""
        node_id = registration.node_id
        node = self._fleet.node(node_id)
        if node is None or node.boot_id == registration.clock.boot_id or now > node.lease_until:
            return
        raise Conflict(
            f"node {node_id} is registered, and runs on another machine",
            hint="give each machine its own PLATFORM_NODE_ID",
            node=node_id,
        )

    def _check_host(self, registration: NodeRegistration) -> None:
        host = registration.host
        is_ours = registration.clock.boot_id == self._read_clock().boot_id
        if host is None or is_ours or not (is_loopback(host) or host in _EVERYWHERE):
            return
        raise Invalid(
            f"replicas of node {registration.node_id} would listen on {host}, where only its own "
            "machine reaches them",
            hint="leave PLATFORM_NODE_HOST unset, or name an address that we reach",
            param="host",
        )

    def _join(self, registration: NodeRegistration, *, now: float) -> None:
        node_id = registration.node_id
        version = int(now * 1000)  # later than any version of an earlier life of ours
        self._fleet.join(
            Node.registered(registration, version=version, lease_s=self._terms.lease_s, now=now)
        )
        reported = {report.replica_id: report for report in registration.replicas}
        for replica in self._fleet.on_node(node_id):
            if replica.replica_id not in reported and replica.state is not ReplicaState.ASSIGNED:
                self._fleet.end(
                    replica.replica_id,
                    ReplicaState.LOST,
                    now=now,
                    detail=f"the agent of node {node_id} started again without it",
                )
        for report in reported.values():
            self._adopt(node_id, report, now=now)
            self._fleet.hear(node_id, report, now=now)

    def _adopt(self, node_id: NodeId, report: ReplicaReport, *, now: float) -> None:
        """Takes a replica over that a control plane before us started."""
        revision = self._live(report.revision)
        if (
            self._fleet.replica(report.replica_id) is not None
            or report.state not in _ADOPTABLE
            or revision is None
        ):
            return
        began_at = min((timing.started_at for timing in report.stages), default=now)
        adopted = Replica(
            replica_id=report.replica_id,
            revision=revision,
            node_id=node_id,
            token=self._token(report.replica_id),
            wanted_at=began_at,
            created_at=began_at,
            since=now,
            progressed_at=now,
            is_adopted=True,
        )
        self._fleet.assign(adopted)

    async def _until_changed(self, node_id: NodeId, wait_s: float) -> None:
        poll: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        polls = self._polls.setdefault(node_id, set())
        polls.add(poll)
        try:
            await asyncio.wait((poll,), timeout=wait_s)
        finally:
            polls.discard(poll)
            if not polls and self._polls.get(node_id) is polls:
                del self._polls[node_id]

    def _wake_polls(self, node_id: NodeId) -> None:
        for poll in self._polls.get(node_id, ()):
            if not poll.done():
                poll.set_result(None)

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if after is None and before is not None:
            self._wake_polls(before.node_id)
