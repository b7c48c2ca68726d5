"""The requests of one revision that wait, and the permits of its replicas that they wait for."""

import asyncio
from collections.abc import Callable, Iterable
from copy import copy

from control_plane.activator.admission import Backlog, admit
from control_plane.activator.balancer import choose
from control_plane.activator.ejection import FIRST_REST_S, rest_s
from control_plane.activator.ticket import Place, Slot, Ticket
from control_plane.activator.ticket_queue import TicketQueue
from control_plane.autoscaler.demand import Demand, DemandMeter
from control_plane.fleet.replica import Endpoint
from infra.clock import Clock
from infra.contracts.base import ReplicaId, RevisionName
from infra.contracts.revision import Revision
from infra.errors import ColdStartTimeout, PlatformError, QueueTimeout

Wake = Callable[[RevisionName], None]

_HOLD_WEIGHT = 0.1  # of the newest permit in the mean time that permits are held


class Line:
    """Gives permits in the queue's order, as fast as replicas have them, to who still waits.

    One clock runs while no replica is usable (cold), another while some are (queue), so that each
    request's patience for the one is not used up by the other. `wake` is called when the first
    request waits at no usable replica, and again when the last usable replica goes; `changed` at
    every change of the demand.
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
        self._clock = clock
        self._wake = wake
        self._meter = DemandMeter(changed)
        self._slots: dict[ReplicaId, Slot] = {}
        self._usable: list[Slot] = []  # of the slots, those that may be given requests
        self._queue = TicketQueue()
        self._waiting_bytes = 0
        self._mean_hold_s = 1.0
        self._is_cold = True
        self._cold_clock = 0.0
        self._queue_clock = 0.0
        self._ticked_at = clock.now()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_clock = 0.0  # reading of the running clock at which the timer fires

    # -- what is -------------------------------------------------------------------------------

    @property
    def is_cold(self) -> bool:
        """No replica is usable."""
        return self._is_cold

    @property
    def is_empty(self) -> bool:
        """Nobody waits and nobody is in flight."""
        return self._meter.waiting == 0 and self._meter.in_flight == 0

    def demand(self) -> Demand:
        return self._meter.read(now=self._clock.now())

    def in_flight(self, replica_id: ReplicaId) -> int:
        slot = self._slots.get(replica_id)
        return 0 if slot is None else slot.in_flight

    def backlog(self) -> Backlog:
        permits = sum(slot.max_concurrency for slot in self._usable)
        return Backlog(
            self.revision.name, len(self._queue), self._waiting_bytes, permits, self._mean_hold_s
        )

    # -- requests ------------------------------------------------------------------------------

    def enter(self, ticket: Ticket) -> None:
        """Gives a permit at once or lets the ticket wait for one; raises QueueFull."""
        now = self._clock.now()
        slot = choose(self._usable, ticket.affinity) if not self._queue else None
        if slot is None:
            admit(self.backlog(), ticket.size, self.revision.spec.limits)
        self._meter.arrive(now=now)
        if slot is not None:
            self._grant(ticket, slot, now)
            return
        self._wait(ticket, now)

    def again(self, ticket: Ticket) -> None:
        """The replica failed the ticket: it waits again, at the place its arrival gives it.

        The replica rests, the longer the more it fails; where no other is usable, no longer than
        FIRST_REST_S at a time. Then it may prove itself, one request at a time.
        """
        slot = ticket.slot
        assert slot is not None and ticket.place is Place.IN_FLIGHT
        now = self._clock.now()
        self._rest(slot, now)
        self._take_back(ticket, now)
        self._meter.retry(now=now)
        self._wait(ticket, now)
        self._settle(now)

    def leave(self, ticket: Ticket) -> None:
        """The request is over, wherever it stands; may be repeated."""
        now = self._clock.now()
        match ticket.place:
            case Place.WAITING:
                self._queue.discard(ticket)
                self._stop_waiting(ticket, now)
                self._end(ticket, was_in_flight=False, now=now)
                if not self._queue:
                    self._disarm()
            case Place.IN_FLIGHT:
                self._take_back(ticket, now)
                self._end(ticket, was_in_flight=True, now=now)
                if self._queue:
                    self._settle(now)
            case Place.OUTSIDE:
                pass
            case Place.OVER:
                _mark_as_seen(ticket)

    def fail(self, error: PlatformError) -> None:
        """No replica can be had: who waits for the first one hears why."""
        if self._is_cold:
            self.dismiss(error)

    def dismiss(self, error: PlatformError) -> None:
        """Sends everybody who waits away."""
        now = self._clock.now()
        self._disarm()
        for ticket in self._queue.drain():
            self._send_away(ticket, copy(error), now)

    # -- replicas ------------------------------------------------------------------------------

    def set_ready(self, endpoints: Iterable[Endpoint]) -> None:
        """Which replicas are READY now; the others finish what they have."""
        open_slots = {endpoint.replica_id: endpoint for endpoint in endpoints}
        for replica_id, slot in tuple(self._slots.items()):
            slot.is_open = replica_id in open_slots
            if not slot.is_open and slot.in_flight == 0:
                del self._slots[replica_id]
        for replica_id, endpoint in open_slots.items():
            if replica_id not in self._slots:
                self._slots[replica_id] = Slot(endpoint)
        self._index_usable()
        self._settle(self._clock.now())

    def answered(self, ticket: Ticket) -> None:
        """The ticket's replica has begun to answer: it is trusted, whatever it did before."""
        slot = ticket.slot
        if slot is not None and slot.failures and not slot.is_resting:
            slot.failures = 0
            self._settle(self._clock.now())

    def _rest(self, slot: Slot, now: float) -> None:
        if slot.is_resting:  # others were with it when it failed
            return
        slot.failures += 1
        slot.is_resting = True
        slot.rests_until = now + rest_s(slot.failures)
        self._index_usable()
        asyncio.get_running_loop().call_later(FIRST_REST_S, self._reconsider, slot)

    def _reconsider(self, slot: Slot) -> None:
        """Ends a rest that is over, or that nobody is left to take requests during."""
        now = self._clock.now()
        left_s = slot.rests_until - now
        if self._usable and left_s > 0:
            delay_s = min(left_s, FIRST_REST_S)
            asyncio.get_running_loop().call_later(delay_s, self._reconsider, slot)
            return
        slot.is_resting = False
        self._index_usable()
        self._settle(now)

    def _index_usable(self) -> None:
        self._usable = [slot for slot in self._slots.values() if slot.is_usable]

    # -- bookkeeping ---------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Asserts that the counters say what the tables say."""
        assert self._meter.waiting == len(self._queue)
        assert self._waiting_bytes == sum(ticket.size for ticket in self._queue)
        held = sum(slot.in_flight for slot in self._slots.values())
        assert self._meter.in_flight == held
        for slot in self._slots.values():
            assert 0 <= slot.in_flight <= slot.endpoint.max_concurrency
        assert self._usable == [slot for slot in self._slots.values() if slot.is_usable]
        assert self._is_cold == (not self._usable)
        assert not self._queue or choose(self._usable) is None, "nobody waits beside a free permit"
        assert (self._timer is None) == (not self._queue)

    def _grant(self, ticket: Ticket, slot: Slot, now: float) -> None:
        slot.in_flight += 1
        ticket.slot = slot
        ticket.place = Place.IN_FLIGHT
        ticket.permitted_at = now
        self._meter.dispatch(now=now)

    def _take_back(self, ticket: Ticket, now: float) -> None:
        slot = ticket.slot
        assert slot is not None
        ticket.slot = None
        slot.in_flight -= 1
        held_s = now - ticket.permitted_at
        self._mean_hold_s += _HOLD_WEIGHT * (held_s - self._mean_hold_s)
        if not slot.is_open and slot.in_flight == 0:
            self._slots.pop(slot.endpoint.replica_id, None)

    def _wait(self, ticket: Ticket, now: float) -> None:
        self._tick(now)
        ticket.place = Place.WAITING
        ticket.granted = asyncio.get_running_loop().create_future()
        ticket.was_cold = ticket.was_cold or self._is_cold
        ticket.cold_joined = self._cold_clock
        ticket.queue_joined = self._queue_clock
        self._waiting_bytes += ticket.size
        self._queue.push(ticket)
        if self._timer is None or self._deadline(ticket) < self._timer_clock:
            self._arm(self._deadline(ticket))
        if self._is_cold and len(self._queue) == 1:
            self._wake(self.revision.name)

    def _stop_waiting(self, ticket: Ticket, now: float) -> None:
        self._tick(now)
        ticket.cold_s += self._cold_clock - ticket.cold_joined
        ticket.queue_s += self._queue_clock - ticket.queue_joined
        ticket.was_cold = ticket.was_cold or ticket.cold_s > 0
        self._waiting_bytes -= ticket.size

    def _send_away(self, ticket: Ticket, error: PlatformError, now: float) -> None:
        """A ticket already out of the queue gets an error instead of a permit."""
        self._stop_waiting(ticket, now)
        self._end(ticket, was_in_flight=False, now=now)
        assert ticket.granted is not None
        if not ticket.granted.done():
            ticket.granted.set_exception(error)

    def _end(self, ticket: Ticket, *, was_in_flight: bool, now: float) -> None:
        ticket.place = Place.OVER
        self._meter.leave(was_in_flight=was_in_flight, now=now)

    def _settle(self, now: float) -> None:
        """Gives away what is free, in order; notices when the line turns cold or warm."""
        self._tick(now)
        was_cold = self._is_cold
        self._is_cold = not self._usable
        while self._queue and (emptiest := choose(self._usable)) is not None:
            ticket = self._queue.pop()
            self._stop_waiting(ticket, now)
            assert ticket.granted is not None
            if ticket.granted.cancelled():  # its client has gone, it only has not run yet
                self._end(ticket, was_in_flight=False, now=now)
                continue
            self._grant(ticket, choose(self._usable, ticket.affinity) or emptiest, now)
            ticket.granted.set_result(None)
        if was_cold != self._is_cold or not self._queue:
            self._rearm()
        if self._is_cold and not was_cold and self._queue:
            self._wake(self.revision.name)

    # -- patience ------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._ticked_at)
        self._ticked_at = now
        if self._is_cold:
            self._cold_clock += elapsed_s
        else:
            self._queue_clock += elapsed_s

    def _clock_reading(self) -> float:
        return self._cold_clock if self._is_cold else self._queue_clock

    def _deadline(self, ticket: Ticket) -> float:
        """Reading of the clock that runs now at which the ticket's patience is over."""
        if self._is_cold:
            return ticket.cold_joined + self._most_cold_s(ticket) - ticket.cold_s
        return ticket.queue_joined + self.revision.spec.timeouts.queue - ticket.queue_s

    def _most_cold_s(self, ticket: Ticket) -> float:
        return min(self.revision.spec.timeouts.cold_start, ticket.most_cold_s)

    def _rearm(self) -> None:
        """Looks for the next deadline: one has passed, or the other clock runs now."""
        self._disarm()
        if self._queue:
            self._arm(min(map(self._deadline, self._queue)))

    def _arm(self, deadline: float) -> None:
        self._disarm()
        self._timer_clock = deadline
        delay_s = max(0.0, deadline - self._clock_reading())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """Sends away whose patience is over."""
        self._timer = None
        now = self._clock.now()
        self._tick(now)
        # a microsecond: the loop's timer may fire that much before the clock has come so far
        reached = self._clock_reading() + 1e-6
        for ticket in [it for it in self._queue if self._deadline(it) <= reached]:
            self._queue.discard(ticket)
            self._send_away(ticket, self._timeout_error(ticket), now)
        self._rearm()

    def _timeout_error(self, ticket: Ticket) -> PlatformError:
        spec = self.revision.spec
        if self._is_cold:
            limit_s = self._most_cold_s(ticket)
            return ColdStartTimeout(
                f"no replica of {self.revision.name} became ready within {limit_s:g} s",
                hint=f"`platform logs {spec.name}` says why; timeouts.cold_start and the header "
                "Firstlight-Cold-Start-Timeout set the limit",
                limit_s=limit_s,
            )
        return QueueTimeout(
            f"the replicas of {self.revision.name} were busy for {spec.timeouts.queue:g} s",
            hint="try again later, or raise scaling.max or timeouts.queue",
            limit_s=spec.timeouts.queue,
        )


def _mark_as_seen(ticket: Ticket) -> None:
    """A client that left at the moment it was sent away reads no error; asyncio would complain."""
    granted = ticket.granted
    if granted is not None and granted.done() and not granted.cancelled():
        granted.exception()
