"""Serves a request, whatever the number of replicas: hold, permit, relay, and try again."""

import asyncio
from itertools import count

from control_plane.activator.bulletin import progress_comment
from control_plane.activator.call import Call, Downstream
from control_plane.activator.exchange import Exchange
from control_plane.activator.lines import Lines
from control_plane.activator.meters import ActivatorMeters
from control_plane.activator.relay import Relay
from control_plane.activator.replica_client import ReplicaClient, ReplicaGone
from control_plane.activator.ticket import Place, Ticket
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from infra.contracts.revision import Revision
from infra.errors import ExecutionTimeout, ReplicaLost, ShuttingDown

MOST_TRIES = 3

# Proxies in front of us give up on a silent response after 30 to 60 s; we speak well before that.
FIRST_WORD_S = 10.0
NEXT_WORD_S = 10.0

_STREAM_HEAD = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
)


class Activator:
    """Takes each request from its admission to its end.

    Whatever happens to it, its permit is given back, its place is given up and its replica is
    told when nobody reads any more. `is_stopping` says that it takes nothing new.
    """

    def __init__(
        self,
        lines: Lines,
        fleet: Fleet,
        replicas: ReplicaClient,
        relay: Relay,
        meters: ActivatorMeters,
    ) -> None:
        self._lines = lines
        self._fleet = fleet
        self._replicas = replicas
        self._relay = relay
        self._meters = meters
        self._arrivals = count()
        self.is_stopping = False
        self._running: set[asyncio.Timeout] = set()
        self._nobody_runs = asyncio.Event()
        fleet.subscribe(self._replica_changed)

    async def serve(self, call: Call, revision: Revision, client: Downstream) -> None:
        """Answers the call; the caller has checked that it may be one for the revision.

        Raises QueueFull, ColdStartTimeout, QueueTimeout, ExecutionTimeout, ReplicaLost,
        ReplicaFailed, NoCapacity, ModelNotFound (deleted meanwhile), ShuttingDown, or
        ReplicaRefused. After `client.has_started` the answer is then incomplete, and the caller
        must tell the client so. Cancelling it ends the request everywhere at once.
        """
        if self.is_stopping:
            raise _shutting_down()
        ticket = Ticket(
            next(self._arrivals),
            len(call.body),
            revision.name,
            call.tenant,
            call.priority,
            call.patience.cold_start_s,
            call.affinity,
        )
        self._lines.enter(ticket, revision)
        try:
            await self._until_answered(Exchange(call, client, ticket, self._lines.answered))
        finally:
            self._lines.leave(ticket)

    async def drain(self, *, within_s: float) -> None:
        """Takes nothing new and sends away who waits; returns when nobody is in flight.

        Who still is after `within_s` is told that the platform stops.
        """
        self.is_stopping = True
        self._lines.dismiss(_shutting_down())
        deadline = asyncio.get_running_loop().time() + within_s
        for limit in self._running:
            limit.reschedule(min(limit.when() or deadline, deadline))
        if self._running:
            self._nobody_runs.clear()
            await self._nobody_runs.wait()

    async def _until_answered(self, exchange: Exchange) -> None:
        while True:
            if exchange.ticket.place is not Place.IN_FLIGHT:
                await self._permit(exchange)
            try:
                await self._attempt(exchange)
                return
            except ReplicaGone as gone:
                self._try_again(exchange, gone)

    async def _attempt(self, exchange: Exchange) -> None:
        if self.is_stopping:
            raise _shutting_down()
        revision = self._lines.revision_of(exchange.ticket)
        limit_s = exchange.limit_s(revision)
        limit = asyncio.timeout(limit_s - exchange.executed_s())
        self._running.add(limit)
        try:
            async with limit:
                await self._relay.attempt(exchange, revision)
        except TimeoutError:
            if not limit.expired():
                raise
            if self.is_stopping:
                raise _shutting_down() from None
            raise ExecutionTimeout(
                f"the replica did not finish within {limit_s:g} s",
                hint="lower max_tokens, or raise timeouts.execution, or your Firstlight-Timeout",
                limit_s=limit_s,
            ) from None
        finally:
            self._running.discard(limit)
            if not self._running:
                self._nobody_runs.set()

    def _try_again(self, exchange: Exchange, gone: ReplicaGone) -> None:
        ticket = exchange.ticket
        if self.is_stopping:
            raise _shutting_down() from gone
        if len(exchange.tries) >= MOST_TRIES:
            raise ReplicaLost(
                f"{MOST_TRIES} tries failed before the first byte, the last one because {gone}",
                hint="send the request again",
                replica_id=ticket.endpoint.replica_id,
            ) from gone
        self._meters.retries.add(self._lines.revision_of(ticket).model)
        self._lines.again(ticket)

    # -- holding -------------------------------------------------------------------------------

    async def _permit(self, exchange: Exchange) -> None:
        """Returns when the request may go to a replica; a stream is kept company meanwhile."""
        ticket = exchange.ticket
        assert ticket.granted is not None
        if exchange.call.is_streaming:
            await self._keep_company(exchange, ticket.granted)
        await ticket.granted

    async def _keep_company(self, exchange: Exchange, granted: "asyncio.Future[None]") -> None:
        """Tells a held stream how far the climb is: at once if it asks, else if it takes long."""
        client, ticket = exchange.client, exchange.ticket
        if not (client.has_started or exchange.call.wants_progress):
            await asyncio.wait((granted,), timeout=FIRST_WORD_S)
            if granted.done():
                return
        if not client.has_started:
            await client.start(200, (*_STREAM_HEAD, *exchange.identity(ticket.revision)))
        said = b""
        while not granted.done():
            comment = progress_comment(self._fleet.climb(ticket.revision))
            news = self._lines.bulletin(ticket).news()
            if comment != said:
                await client.send(comment)
                said = comment
            done, _ = await asyncio.wait(
                (granted, news), timeout=NEXT_WORD_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                said = b""  # nothing new, but a word in time

    def _replica_changed(self, before: Replica | None, after: Replica) -> None:
        """A replica that is over gets nothing more."""
        if after.is_over:
            self._replicas.forget(after.replica_id)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the platform is stopping", hint="try again soon", retry_after_s=5)
