"""The requests of one revision that wait, and the permits of its replicas that they wait for."""

import asyncio
from collections.abc import Callable, Iterable
from copy import copy

from control_plane.activator.admission import Backlog, admit
from control_plane.activator.permits import Permits
from control_plane.activator.ticket import IN_FLIGHT, OVER, WAITING, Ticket
from control_plane.activator.waiting_room import WaitingRoom
from control_plane.autoscaler.demand import Demand, DemandMeter
from control_plane.fleet.replica import Endpoint
from infra.clock import Clock
from infra.contracts.base import ReplicaId, RevisionName
from infra.contracts.node import Failure
from infra.contracts.revision import Revision
from infra.errors import PlatformError

Wake = Callable[[RevisionName], None]


class Line:
    """Gives permits in the queue's order, as fast as replicas have them, to who still waits.

    `wake` is called when the first request waits at no usable replica, and again when the last
    usable replica goes; `changed` at every change of the demand.
    """

    def __init__(
        self,
        revision: Revision,
        *,
        clock: Clock,
        wake: Wake,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self.revision = revision
        self.is_retired = False  # out of traffic: nothing new comes
        self._clock = clock
        self._wake = wake
        self._meter = DemandMeter(changed)
        self._permits = Permits(clock=clock, changed=self._permits_changed)
        self._room = WaitingRoom(revision, clock=clock, expire=self._send_away)

    # -- what is -------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Nobody waits and nobody is in flight."""
        return self._meter.waiting == 0 and self._meter.in_flight == 0

    def demand(self) -> Demand:
        return self._meter.read(now=self._clock.now())

    def in_flight(self, replica_id: ReplicaId) -> int:
        return self._permits.in_flight(replica_id)

    def backlog(self) -> Backlog:
        permits, room = self._permits, self._room
        return Backlog(
            self.revision.name, len(room), room.waiting_bytes, permits.total, permits.mean_hold_s
        )

    # -- requests ------------------------------------------------------------------------------

    def enter(self, ticket: Ticket) -> None:
        """Gives a permit at once or lets the ticket wait for one; raises QueueFull."""
        slot = None if self._room else self._permits.free(ticket.affinity)
        if slot is None:
            admit(self.backlog(), ticket.size, self.revision.spec.limits)
        now = self._clock.now()
        if slot is None:
            self._meter.arrive(now=now)
            self._wait(ticket, now)
        else:
            self._meter.arrive_at_replica(now=now)
            ticket.permit(slot, now=now)

    def again(self, ticket: Ticket) -> None:
        """The replica failed the ticket: it waits again, at the place its arrival gives it."""
        slot = ticket.slot
        assert slot is not None and ticket.place is IN_FLIGHT
        now = self._clock.now()
        self._permits.suspect(slot, now=now)
        self._permits.take_back(ticket, now=now)
        self._meter.retry(now=now)
        self._wait(ticket, now)
        self._settle(now)

    def leave(self, ticket: Ticket) -> None:
        """The request is over, wherever it stands; may be repeated."""
        if ticket.place is IN_FLIGHT:
            now = self._clock.now()
            self._permits.take_back(ticket, now=now)
            self._end(ticket, was_in_flight=True, now=now)
            if self._room:
                self._settle(now)
        elif ticket.place is WAITING:
            now = self._clock.now()
            self._room.discard(ticket, now=now)
            self._end(ticket, was_in_flight=False, now=now)

    def fail(self, error: PlatformError) -> None:
        """No replica can be had: who waits for the first one hears why."""
        if self._room.is_cold:
            self.dismiss(error)

    def dismiss(self, error: PlatformError) -> None:
        """Sends everybody who waits away."""
        now = self._clock.now()
        for ticket in self._room.drain(now=now):
            self._send_away(ticket, copy(error), now)

    # -- replicas ------------------------------------------------------------------------------

    def set_ready(self, endpoints: Iterable[Endpoint]) -> None:
        """Which replicas are READY now; the others finish what they have."""
        self._permits.set_ready(endpoints)
        self._permits_changed()

    def replica_failed(self, failure: Failure | None) -> None:
        """Why a replica ended, for those who wait in vain; None: one is ready."""
        self._room.last_failure = failure

    def answered(self, ticket: Ticket) -> None:
        """The ticket's replica has begun to answer: it is trusted, whatever it did before."""
        slot = ticket.slot
        if slot is not None and self._permits.trust(slot):
            self._permits_changed()

    def _permits_changed(self) -> None:
        self._settle(self._clock.now())

    # -- bookkeeping ---------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Asserts that the counters say what the tables say."""
        self._permits.check_integrity()
        self._room.check_integrity()
        assert self._meter.waiting == len(self._room)
        assert self._meter.in_flight <= self._permits.taken
        assert self._room.is_cold == (not self._permits.is_usable)
        assert not self._room or self._permits.free() is None, "nobody waits beside a free permit"

    def _wait(self, ticket: Ticket, now: float) -> None:
        self._room.push(ticket, now=now)
        if self._room.is_cold and len(self._room) == 1:
            self._wake(self.revision.name)

    def _send_away(self, ticket: Ticket, error: PlatformError, now: float) -> None:
        """A ticket already out of the queue gets an error instead of a permit."""
        self._end(ticket, was_in_flight=False, now=now)
        assert ticket.holder is not None
        asyncio.get_running_loop().call_soon(ticket.holder.sent_away, error)

    def _end(self, ticket: Ticket, *, was_in_flight: bool, now: float) -> None:
        ticket.place = OVER
        self._meter.leave(was_in_flight=was_in_flight, now=now)

    def _settle(self, now: float) -> None:
        """Gives away what is free, in order; notices when the line turns cold or warm."""
        room, permits = self._room, self._permits
        was_cold = room.is_cold
        room.expire_due(now=now)
        while room and (emptiest := permits.free()) is not None:
            ticket = room.pop(now=now)
            ticket.permit(permits.free(ticket.affinity) or emptiest, now=now)
            self._meter.dispatch(now=now)
            assert ticket.holder is not None
            asyncio.get_running_loop().call_soon(ticket.holder.granted)
        room.settle(is_cold=not permits.is_usable, now=now)
        if room.is_cold and not was_cold and room:
            self._wake(self.revision.name)
