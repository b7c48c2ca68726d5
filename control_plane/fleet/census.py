"""What nodes had that are not back yet: whoever takes a fleet over does not start it anew."""

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Protocol

import structlog

from control_plane.capacity.port import CapacityEvent, Ended
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from infra.clock import Clock
from infra.contracts.base import NodeId, RevisionName
from infra.supervise import repeat

log = structlog.get_logger()

Place = tuple[NodeId, RevisionName]
ExpectedListener = Callable[[RevisionName], None]

WRITE_EVERY_S = 1.0
_MOST_WRITTEN = 1000  # places at once: some milliseconds
RETURN_S = 5.0  # agents dial again every two seconds at least


class CensusStore(Protocol):
    """Every method may be repeated, and raises StoreUnavailable."""

    async def read(self) -> Mapping[Place, int]:
        """How many replicas of each revision each node had; what cannot be read is left out."""
        ...

    async def write(self, counts: Mapping[Place, int]) -> None:
        """Keeps these in the place of what was kept; what is zero is forgotten."""
        ...


class MemoryCensusStore:
    """The CensusStore of tests, and of a fleet that nobody takes over."""

    def __init__(self) -> None:
        self.kept: dict[Place, int] = {}

    async def read(self) -> Mapping[Place, int]:
        return dict(self.kept)

    async def write(self, counts: Mapping[Place, int]) -> None:
        self.kept = {place: it for place, it in {**self.kept, **counts}.items() if it > 0}


class Census:
    """Written behind, by who leads; read by who begins to.

    A node that a control plane before us had may take RETURN_S to find this one. Until it has, what
    it had is expected; then it tells itself what it has. One that is known to be gone, or does not
    come, is expected no more. Up to WRITE_EVERY_S of changes can be lost: a replica is started a
    second time then, or not before RETURN_S are over.
    """

    def __init__(
        self,
        store: CensusStore,
        fleet: Fleet,
        *,
        clock: Clock,
        is_leading: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._clock = clock
        self._is_leading = is_leading
        self._absent: dict[NodeId, dict[RevisionName, int]] = {}
        self._expected: dict[RevisionName, int] = {}
        self._until = -math.inf
        self._unwritten: set[Place] = set()
        self._listeners: list[ExpectedListener] = []
        fleet.subscribe(self._replica_changed)
        fleet.subscribe_nodes(self._node_changed)

    def subscribe(self, listener: ExpectedListener) -> None:
        """Calls back when less of a revision is expected."""
        self._listeners.append(listener)

    def expected(self, revision: RevisionName) -> int:
        """How many replicas of a revision nodes have, in all likelihood, that are not back yet."""
        return self._expected.get(revision, 0)

    async def load(self) -> None:
        """Reads what a control plane before us left; raises StoreUnavailable."""
        kept = await self._store.read()
        self._absent, self._expected = {}, {}
        for (node_id, revision), count in kept.items():
            if self._fleet.node(node_id) is not None:
                self._unwritten.add((node_id, revision))
                continue
            self._absent.setdefault(node_id, {})[revision] = count
            self._expected[revision] = self.expected(revision) + count
        for replica in self._fleet.replicas():
            self._unwritten.add((replica.node_id, replica.revision.name))
        self._until = self._clock.now() + RETURN_S
        if self._absent:
            log.info("census.expects", nodes=len(self._absent), replicas=sum(kept.values()))

    def heard(self, event: CapacityEvent) -> None:
        """Of a machine that is known to be gone nothing is expected. May be repeated."""
        if isinstance(event, Ended):
            self._settle(event.node_id)

    async def run(self) -> None:
        """Writes, and gives up what did not come, until cancelled."""
        await repeat(self._look, every_s=WRITE_EVERY_S, on_failure="census.unwritten")

    async def _look(self) -> None:
        if self._absent and self._clock.now() >= self._until:
            log.info("census.gives-up", nodes=sorted(self._absent)[:10], count=len(self._absent))
            for node_id in tuple(self._absent):
                self._settle(node_id)
        await self.write()

    async def write(self) -> None:
        """Writes what has changed; raises StoreUnavailable, then it is written later."""
        if not self._is_leading():
            self._unwritten.clear()  # who begins to lead writes all it has
        while self._unwritten:
            places = set(islice(self._unwritten, _MOST_WRITTEN))
            self._unwritten -= places
            try:
                await self._store.write({place: self._count(*place) for place in places})
            except BaseException:
                self._unwritten |= places
                raise

    def _count(self, node_id: NodeId, revision: RevisionName) -> int:
        """What would be adopted."""
        replicas = self._fleet.of_revision(revision)
        return sum(it.node_id == node_id and it.is_serving_or_loading for it in replicas)

    def _settle(self, node_id: NodeId) -> None:
        """Nothing that the node has is unknown any more."""
        had = self._absent.pop(node_id, {})
        for revision, count in had.items():
            self._unwritten.add((node_id, revision))
            left = self._expected.pop(revision) - count
            if left > 0:
                self._expected[revision] = left
        for revision in had:
            for listener in self._listeners:
                listener(revision)

    def _node_changed(self, before: Node | None, after: Node | None) -> None:
        if before is None and after is not None:
            self._settle(after.node_id)

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        was_there = before is not None and before.is_serving_or_loading
        if was_there is not after.is_serving_or_loading:
            self._unwritten.add((after.node_id, after.revision.name))
