"""Takes requests, whatever the number of replicas, and lets them end when the platform stops."""

from collections.abc import Callable
from itertools import count

from control_plane.activator.call import Call, Downstream
from control_plane.activator.exchange import Exchange, Relaying, Surroundings, shutting_down
from control_plane.activator.flights import Flights
from control_plane.activator.lines import Lines
from control_plane.activator.meters import ActivatorMeters
from control_plane.activator.replica_client import ReplicaClient
from control_plane.activator.ticket import Ticket
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from infra.clock import Clock
from infra.contracts.revision import Revision
from infra.contracts.tenancy import TenantName


class Activator:
    """Begins an exchange for each request.

    Whatever happens to it, its permit is given back, its place is given up and its replica is
    told when nobody reads any more.
    """

    def __init__(
        self,
        lines: Lines,
        fleet: Fleet,
        replicas: ReplicaClient,
        relay: Relaying,
        meters: ActivatorMeters,
        clock: Clock,
        weight_of: Callable[[TenantName], int] = lambda tenant: 1,
    ) -> None:
        """`weight_of` a tenant is its share of turns beside that of other tenants."""
        self._weight_of = weight_of
        self._lines = lines
        self._replicas = replicas
        self._flights = Flights(clock)
        self._around = Surroundings(lines, fleet, self._flights, relay, meters)
        self._arrivals = count()
        fleet.subscribe(self._replica_changed)

    @property
    def is_stopping(self) -> bool:
        """It takes nothing new."""
        return self._flights.is_closing

    def begin(self, call: Call, revision: Revision, client: Downstream) -> Exchange:
        """Takes the call, which may be one for the revision; all that follows is told the client.

        Raises QueueFull or ShuttingDown. The client may be told of ColdStartTimeout, QueueTimeout,
        ExecutionTimeout, ReplicaLost, ReplicaFailed, NoCapacity, ModelNotFound (deleted meanwhile),
        ShuttingDown, or ReplicaRefused.
        """
        if self._flights.is_closing:
            raise shutting_down()
        ticket = Ticket(
            next(self._arrivals),
            len(call.body),
            revision.name,
            call.tenant,
            call.priority,
            call.patience.cold_start_s,
            call.patience.held_s,
            self._weight_of(call.tenant),
            call.affinity,
            call.sequences,
        )
        exchange = Exchange(self._around, call, client, ticket)
        exchange.begin(revision)
        return exchange

    async def drain(self, *, within_s: float) -> None:
        """Takes nothing new and sends away who waits; returns when nobody is in flight.

        Who still is after `within_s` is told that the platform stops.
        """
        self._flights.is_closing = True
        self._lines.dismiss(shutting_down())
        await self._flights.close(within_s=within_s)

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        """A replica that is over gets nothing more."""
        if after.is_over:
            self._replicas.forget(after.replica_id)
