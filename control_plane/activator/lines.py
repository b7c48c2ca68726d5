"""The waiting line of every revision, kept in step with deployments and the fleet."""

from collections.abc import Set
from functools import partial

from control_plane.activator.bulletin import Bulletin
from control_plane.activator.line import Line, Wake
from control_plane.activator.ticket import Ticket
from control_plane.autoscaler.demand import Demand
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change
from control_plane.fleet.crash_loop import placed
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from infra.clock import Clock
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.node import Failure
from infra.contracts.revision import ReplicaState, Revision
from infra.errors import ModelNotFound, PlatformError

_NOTHING = Demand(0, 0, None, 0.0)


class Lines:
    """Owns the lines; they hear of the fleet's changes within the call that made them.

    A request stays with the revision it was admitted to, whatever is deployed meanwhile; who waits
    for a model that is deleted is told so. It is the DemandSource of the autoscaler, which must
    have subscribed to the deployments before, so that it knows a revision when it is poked for it.
    """

    def __init__(self, deployments: Deployments, fleet: Fleet, *, clock: Clock, wake: Wake) -> None:
        self._deployments = deployments
        self._fleet = fleet
        self._clock = clock
        self._wake = wake
        self._lines: dict[RevisionName, Line] = {}
        self._by_model: dict[ModelName, dict[RevisionName, Line]] = {}
        self._bulletins: dict[RevisionName, Bulletin] = {}
        self._deleted: set[RevisionName] = set()  # of the lines, those that finish and are gone
        self._changed: set[RevisionName] = set()
        deployments.subscribe(self._deployment_changed)
        fleet.subscribe(self._replica_changed)

    # -- requests ------------------------------------------------------------------------------

    def enter(self, ticket: Ticket, revision: Revision) -> None:
        """See Line.enter."""
        line = self._lines.get(revision.name) or self._open(revision)
        line.enter(ticket)

    def again(self, ticket: Ticket) -> None:
        """See Line.again; raises ModelNotFound when the ticket's revision was deleted."""
        line = self._lines[ticket.revision]
        if ticket.revision in self._deleted:
            raise _deleted(line.revision.model)
        line.again(ticket)

    def answered(self, ticket: Ticket) -> None:
        """See Line.answered."""
        self._lines[ticket.revision].answered(ticket)

    def leave(self, ticket: Ticket) -> None:
        """See Line.leave."""
        line = self._lines.get(ticket.revision)
        if line is not None:
            line.leave(ticket)
            if line.is_retired:
                self._drop_if_empty(line)

    def revision_of(self, ticket: Ticket) -> Revision:
        """The revision in whose line the ticket stands."""
        return self._lines[ticket.revision].revision

    def bulletin(self, ticket: Ticket) -> Bulletin:
        """News of the climb that the ticket waits for."""
        return self._bulletins.setdefault(ticket.revision, Bulletin())

    def dismiss(self, error: PlatformError) -> None:
        """Sends away everybody who waits anywhere."""
        for line in tuple(self._lines.values()):
            line.dismiss(error)

    # -- what others ask and tell --------------------------------------------------------------

    def demand(self, revision: RevisionName) -> Demand:
        """See DemandSource: this activator holds all requests, so none known means none."""
        line = self._lines.get(revision)
        return _NOTHING if line is None else line.demand()

    def changed(self) -> Set[RevisionName]:
        """See DemandSource."""
        changed = self._changed.copy()
        self._changed.clear()
        return changed

    def demand_of(self, model: ModelName) -> Demand:
        """The load of all revisions of a model that still have any."""
        loads = [line.demand() for line in self._by_model.get(model, {}).values()]
        return Demand(
            in_flight=sum(load.in_flight for load in loads),
            waiting=sum(load.waiting for load in loads),
            last_active_at=max(
                (at for load in loads if (at := load.last_active_at) is not None), default=None
            ),
            request_seconds=sum(load.request_seconds for load in loads),
        )

    def permits(self, revision: Revision) -> int:
        """Requests that the ready replicas of a revision take at once."""
        return sum(endpoint.max_concurrency for endpoint in self._fleet.ready(revision.name))

    def in_flight(self, replica: Replica) -> int:
        """Requests that a replica is serving."""
        line = self._lines.get(replica.revision.name)
        return 0 if line is None else line.in_flight(replica.replica_id)

    def fail(self, revision: RevisionName, error: PlatformError) -> None:
        """The reconciler's FailedListener."""
        line = self._lines.get(revision)
        if line is not None:
            line.fail(error)

    def check_integrity(self) -> None:
        """Asserts that every line's counters say what its tables say."""
        for line in self._lines.values():
            line.check_integrity()

    # -- keeping in step -----------------------------------------------------------------------

    def _open(self, revision: Revision) -> Line:
        name = revision.name
        line = self._lines[name] = Line(
            revision,
            clock=self._clock,
            wake=self._wake,
            changed=partial(self._changed.add, name),
        )
        line.is_retired = self._deployments.live(name) is None
        line.set_ready(self._fleet.ready(name))
        self._by_model.setdefault(revision.model, {})[name] = line
        return line

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        revision = after.revision.name
        if before is None or before.state is not after.state:
            line = self._lines.get(revision)
            if line is not None:
                line.set_ready(self._fleet.ready(revision))
                if after.state is ReplicaState.READY or after.failure is not None:
                    line.replica_failed(_placed(after))
        bulletin = self._bulletins.get(revision)
        if bulletin is not None:
            bulletin.ring()

    def _deployment_changed(self, change: Change) -> None:
        for line in tuple(self._by_model.get(change.model, {}).values()):
            if change.after is None:
                self._deleted.add(line.revision.name)
                line.dismiss(_deleted(change.model))
            line.is_retired = self._deployments.live(line.revision.name) is None
            if line.is_retired:
                self._drop_if_empty(line)

    def _drop_if_empty(self, line: Line) -> None:
        """A line whose revision is out of traffic goes with its last request."""
        if not line.is_empty:
            return
        name, model = line.revision.name, line.revision.model
        self._bulletins.pop(name, None)
        self._deleted.discard(name)
        if self._lines.pop(name, None) is None:
            return
        siblings = self._by_model[model]
        del siblings[name]
        if not siblings:
            del self._by_model[model]


def _placed(replica: Replica) -> Failure | None:
    """Why it ended, and where."""
    failure = replica.failure
    if failure is None:
        return None
    return failure.model_copy(update={"detail": placed(failure.detail, replica.node_id)})


def _deleted(model: ModelName) -> ModelNotFound:
    return ModelNotFound(f"model {model} was deleted while the request waited", model=model)
