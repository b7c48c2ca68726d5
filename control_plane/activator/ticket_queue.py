"""The order of waiting tickets: turns between tenants; priority, deadline, arrival within one."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from control_plane.activator.ticket import Ticket
from infra.contracts.tenancy import TenantName

_Order = tuple[int, float, int]  # priority, deadline, arrival


@dataclass(eq=False, slots=True)
class _Flow:
    """What waits of one tenant; `start` is the virtual time of its next turn."""

    start: float
    heap: list[tuple[_Order, Ticket]] = field(default_factory=list)  # with some that left
    waiting: int = 0


class TicketQueue:
    """Waiting tickets, fair between tenants; leaving costs no search.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996) with every ticket at cost 1: the tenant
    with the earliest start goes next, and then starts later by 1 / its weight; who comes to wait
    starts no earlier than the turn that was served last. So while two tenants wait, their turns
    divided by their weights differ by no more than 1 / one's weight + 1 / the other's; and of
    another tenant no more than 1 + its weight / mine x (n - 1) turns come before my n-th.

    A tenant's own tickets go by priority, lower first, then by the time until which they may be
    held, earliest first and those without one last, then by arrival, also when one comes back:
    alone and with equal priorities and no deadlines that is first come, first served.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Ticket] = {}
        self._flows: dict[TenantName, _Flow] = {}
        # every tenant in _flows has one entry: start, number of the entry, tenant
        self._turns: list[tuple[float, int, TenantName]] = []
        self._entries = 0
        self._now = 0.0  # virtual time: the start of the turn that was served last

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Ticket]:
        """The waiting tickets in no particular order."""
        return iter(self._waiting.values())

    def push(self, ticket: Ticket) -> None:
        assert ticket.arrival not in self._waiting, "a ticket waits once"
        self._waiting[ticket.arrival] = ticket
        flow = self._flows.get(ticket.tenant)
        if flow is None:
            flow = self._flows[ticket.tenant] = _Flow(self._now)
            self._queue_up(ticket.tenant, flow)
        flow.waiting += 1
        order = (ticket.priority, ticket.held_until, ticket.arrival)
        heapq.heappush(flow.heap, (order, ticket))

    def pop(self) -> Ticket:
        """The ticket whose turn it is; raises IndexError when none waits."""
        while True:
            start, _, tenant = heapq.heappop(self._turns)
            flow = self._flows[tenant]
            if flow.waiting == 0:  # it is remembered until its last turn is over
                del self._flows[tenant]
                continue
            self._now = start
            ticket = self._first(flow)
            flow.start = start + 1 / ticket.weight
            self._queue_up(tenant, flow)
            self._forget_if_empty()
            return ticket

    def discard(self, ticket: Ticket) -> None:
        """Takes a waiting ticket out."""
        del self._waiting[ticket.arrival]
        flow = self._flows[ticket.tenant]
        flow.waiting -= 1
        if len(flow.heap) > 2 * flow.waiting + 64:
            flow.heap = [entry for entry in flow.heap if entry[1].arrival in self._waiting]
            heapq.heapify(flow.heap)
        self._forget_if_empty()

    def drain(self) -> list[Ticket]:
        """Takes all tickets out, oldest first."""
        tickets = sorted(self._waiting.values(), key=lambda ticket: ticket.arrival)
        self._waiting.clear()
        self._forget_if_empty()
        return tickets

    def _queue_up(self, tenant: TenantName, flow: _Flow) -> None:
        self._entries += 1
        heapq.heappush(self._turns, (flow.start, self._entries, tenant))

    def _first(self, flow: _Flow) -> Ticket:
        while True:
            _, ticket = heapq.heappop(flow.heap)
            if self._waiting.get(ticket.arrival) is ticket:
                del self._waiting[ticket.arrival]
                flow.waiting -= 1
                return ticket

    def _forget_if_empty(self) -> None:
        """Nobody waits, so nobody owes anybody a turn."""
        if not self._waiting:
            self._flows.clear()
            self._turns.clear()
            self._now = 0.0
