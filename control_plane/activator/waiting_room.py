"""The tickets of one line that wait, and how long each of them may."""

import asyncio
from collections.abc import Callable
from typing import Final

from control_plane.activator.ticket import WAITING, Ticket
from control_plane.activator.ticket_queue import TicketQueue
from infra.clock import Clock
from infra.contracts.node import Failure
from infra.contracts.revision import Revision
from infra.errors import ColdStartTimeout, PlatformError, QueueTimeout

# The loop's timer may fire that much before the clock has come so far.
_EARLY_S: Final = 1e-6


class WaitingRoom:
    """Who waits, in the queue's order.

    One clock runs while no replica is usable (cold), another while some are (queue), so that each
    request's patience for the one is not used up by the other; how long a client lets it be held in
    all runs on both. `expire` is called for each ticket whose patience is over, after it was taken
    out, with the reason.
    """

    def __init__(
        self,
        revision: Revision,
        *,
        clock: Clock,
        expire: Callable[[Ticket, PlatformError, float], None],
    ) -> None:
        self._revision = revision
        self._clock = clock
        self._expire_ticket = expire
        self._queue = TicketQueue()
        self.is_cold = True
        self.waiting_bytes = 0
        self.last_failure: Failure | None = None  # of a replica since one was ready
        self._cold_clock = 0.0
        self._queue_clock = 0.0
        self._ticked_at = clock.now()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_clock = 0.0  # reading of the running clock at which the timer fires

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, ticket: Ticket, *, now: float) -> None:
        """The ticket waits."""
        self._tick(now)
        ticket.place = WAITING
        ticket.was_cold = ticket.was_cold or self.is_cold
        ticket.cold_joined = self._cold_clock
        ticket.queue_joined = self._queue_clock
        ticket.held_until = now + ticket.most_held_s - ticket.cold_s - ticket.queue_s
        self.waiting_bytes += ticket.size
        self._queue.push(ticket)
        if self._timer is None or self._deadline(ticket) < self._timer_clock:
            self._arm(self._deadline(ticket))

    def pop(self, *, now: float) -> Ticket:
        """The ticket whose turn it is; the caller settles when it has taken all it wants."""
        ticket = self._queue.pop()
        self._stop_waiting(ticket, now)
        return ticket

    def expire_due(self, *, now: float) -> None:
        """Sends away whose patience is over now, also where the timer is late."""
        self._tick(now)
        if self._timer is not None and self._timer_clock <= self._clock_reading():
            self._disarm()
            self._expire()

    def discard(self, ticket: Ticket, *, now: float) -> None:
        """Takes a waiting ticket out."""
        self._queue.discard(ticket)
        self._stop_waiting(ticket, now)
        if not self._queue:
            self._disarm()

    def drain(self, *, now: float) -> list[Ticket]:
        """Takes all tickets out, oldest first."""
        self._disarm()
        tickets = self._queue.drain()
        for ticket in tickets:
            self._stop_waiting(ticket, now)
        return tickets

    def settle(self, *, is_cold: bool, now: float) -> None:
        """Which clock runs from now on; the next deadline is looked for if that changed."""
        self._tick(now)
        has_turned, self.is_cold = is_cold != self.is_cold, is_cold
        if has_turned or not self._queue:
            self._rearm()

    def check_integrity(self) -> None:
        """Asserts that the counter and the timer say what the queue says."""
        assert self.waiting_bytes == sum(ticket.size for ticket in self._queue)
        assert (self._timer is None) == (not self._queue)

    def _stop_waiting(self, ticket: Ticket, now: float) -> None:
        self._tick(now)
        ticket.cold_s += self._cold_clock - ticket.cold_joined
        ticket.queue_s += self._queue_clock - ticket.queue_joined
        ticket.was_cold = ticket.was_cold or ticket.cold_s > 0
        self.waiting_bytes -= ticket.size

    # -- patience ------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._ticked_at)
        self._ticked_at = now
        if self.is_cold:
            self._cold_clock += elapsed_s
        else:
            self._queue_clock += elapsed_s

    def _clock_reading(self) -> float:
        return self._cold_clock if self.is_cold else self._queue_clock

    def _deadline(self, ticket: Ticket) -> float:
        """Reading of the clock that runs now at which the ticket's patience is over."""
        if self.is_cold:
            ends = ticket.cold_joined + self._most_cold_s(ticket) - ticket.cold_s
        else:
            ends = ticket.queue_joined + self._revision.spec.timeouts.queue - ticket.queue_s
        return min(ends, self._clock_reading() + ticket.held_until - self._ticked_at)

    def _most_cold_s(self, ticket: Ticket) -> float:
        return min(self._revision.spec.timeouts.cold_start, ticket.most_cold_s)

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
        reached = self._clock_reading() + _EARLY_S
        for ticket in [it for it in self._queue if self._deadline(it) <= reached]:
            self._queue.discard(ticket)
            self._stop_waiting(ticket, now)
            self._expire_ticket(ticket, self._timeout_error(ticket), now)
        self._rearm()

    def _timeout_error(self, ticket: Ticket) -> PlatformError:
        revision = self._revision
        if ticket.held_until <= self._ticked_at + _EARLY_S:
            kind = ColdStartTimeout if self.is_cold else QueueTimeout
            return kind(
                f"no replica of {revision.name} took the request within {ticket.most_held_s:g} s"
                + self._why(),
                hint=self._hint() or "the header Firstlight-Wait-Timeout set the limit",
                limit_s=ticket.most_held_s,
            )
        if self.is_cold:
            limit_s = self._most_cold_s(ticket)
            return ColdStartTimeout(
                f"no replica of {revision.name} became ready within {limit_s:g} s" + self._why(),
                hint=self._hint()
                or f"`platform logs {revision.model}` says why; timeouts.cold_start and the "
                "header Firstlight-Cold-Start-Timeout set the limit",
                limit_s=limit_s,
            )
        limit_s = revision.spec.timeouts.queue
        return QueueTimeout(
            f"the replicas of {revision.name} were busy for {limit_s:g} s",
            hint="try again later, or raise scaling.max or timeouts.queue",
            limit_s=limit_s,
        )

    def _why(self) -> str:
        failure = self._failure
        return "" if failure is None else f"; the last one failed: {failure.detail}"

    def _hint(self) -> str | None:
        return None if self._failure is None else self._failure.hint

    @property
    def _failure(self) -> Failure | None:
        return self.last_failure if self.is_cold else None
