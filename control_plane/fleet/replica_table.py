"""Every replica that has not ended, found by its revision, its node, and what it does."""

from collections.abc import Iterable, Iterator

from control_plane.fleet.counts import NONE, Counts, count
from control_plane.fleet.replica import Climb, Endpoint, Replica
from infra.contracts.base import NodeId, ReplicaId, RevisionName
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage, StageProgress

_ORDER = {stage: place for place, stage in enumerate(Stage)}


class ReplicaTable:
    """The table and its indexes; some that ended are remembered."""

    def __init__(self, *, remembered: int) -> None:
        self._replicas: dict[ReplicaId, Replica] = {}
        self._by_revision: dict[RevisionName, dict[ReplicaId, None]] = {}
        self._by_node: dict[NodeId, dict[ReplicaId, None]] = {}
        self._counts: dict[RevisionName, Counts] = {}
        self._ready: dict[RevisionName, tuple[Endpoint, ...]] = {}
        self._ended: dict[ReplicaId, Replica] = {}
        self._remembered = remembered
        self.total = NONE

    def __iter__(self) -> Iterator[Replica]:
        """Oldest first."""
        return iter(self._replicas.values())

    def get(self, replica_id: ReplicaId) -> Replica | None:
        return self._replicas.get(replica_id)

    def ended(self, replica_id: ReplicaId) -> Replica | None:
        """One that ended not long ago."""
        return self._ended.get(replica_id)

    def of_revision(self, revision: RevisionName) -> Iterator[Replica]:
        """Oldest first."""
        return (self._replicas[it] for it in self._by_revision.get(revision, ()))

    def on_node(self, node_id: NodeId) -> Iterator[Replica]:
        """Oldest first."""
        return (self._replicas[it] for it in self._by_node.get(node_id, ()))

    def is_empty(self, node_id: NodeId) -> bool:
        """Whether the node has none."""
        return node_id not in self._by_node

    def counts(self, revision: RevisionName) -> Counts:
        return self._counts.get(revision, NONE)

    def ready(self, revision: RevisionName) -> tuple[Endpoint, ...]:
        """Where the READY ones answer, oldest first."""
        return self._ready.get(revision, ())

    def climb(self, revision: RevisionName) -> Climb | None:
        """The loading one that is furthest up; None when none is loading."""
        loading = [replica for replica in self.of_revision(revision) if replica.is_loading]
        if not loading:
            return None
        furthest = max(loading, key=_height)
        return Climb(furthest.replica_id, furthest.state, furthest.progress, len(loading))

    def put(self, before: Replica | None, after: Replica) -> None:
        """A replica came, changed or ended."""
        revision = after.revision.name
        self._count(revision, before, after)
        if after.is_over:
            self._forget(after)
        else:
            self._replicas[after.replica_id] = after
            self._by_revision.setdefault(revision, {})[after.replica_id] = None
            self._by_node.setdefault(after.node_id, {})[after.replica_id] = None
        if _is_ready(before) or _is_ready(after):
            self._index_ready(revision)

    def check_integrity(self) -> None:
        """Asserts that every index says the same as the table."""
        assert all(not replica.is_over for replica in self)
        indexed = {it for ids in self._by_revision.values() for it in ids}
        assert indexed == set(self._replicas) == {it for i in self._by_node.values() for it in i}
        for revision in {*self._ready, *self._by_revision}:
            assert self.ready(revision) == _endpoints(self.of_revision(revision))
        for revision in {*self._counts, *self._by_revision}:
            assert self.counts(revision) == count(self.of_revision(revision))
        assert self.total == count(self)

    def _count(self, revision: RevisionName, before: Replica | None, after: Replica) -> None:
        counts = self.counts(revision).moved(before, after)
        self.total = self.total.moved(before, after)
        if counts == NONE:
            self._counts.pop(revision, None)
        else:
            self._counts[revision] = counts

    def _forget(self, ended: Replica) -> None:
        self._replicas.pop(ended.replica_id, None)
        _discard(self._by_revision, ended.revision.name, ended.replica_id)
        _discard(self._by_node, ended.node_id, ended.replica_id)
        self._ended[ended.replica_id] = ended
        if len(self._ended) > self._remembered:
            self._ended.pop(next(iter(self._ended)))

    def _index_ready(self, revision: RevisionName) -> None:
        endpoints = _endpoints(self.of_revision(revision))
        if endpoints:
            self._ready[revision] = endpoints
        else:
            self._ready.pop(revision, None)


def _is_ready(replica: Replica | None) -> bool:
    return replica is not None and replica.state is ReplicaState.READY


def _endpoints(replicas: Iterable[Replica]) -> tuple[Endpoint, ...]:
    return tuple(it for replica in replicas if (it := replica.endpoint()) is not None)


def _height(replica: Replica) -> tuple[int, float]:
    progress: StageProgress | None = replica.progress
    if progress is None:
        return (-1, 0.0) if replica.state is ReplicaState.ASSIGNED else (0, 0.0)
    return (_ORDER[progress.stage], progress.fraction)


def _discard(
    index: dict[RevisionName, dict[ReplicaId, None]] | dict[NodeId, dict[ReplicaId, None]],
    key: RevisionName | NodeId,
    replica_id: ReplicaId,
) -> None:
    members = index.get(key)  # type: ignore[arg-type]
    if members is None:
        return
    members.pop(replica_id, None)
    if not members:
        del index[key]  # type: ignore[arg-type]
