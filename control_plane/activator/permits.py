"""The permits of one revision's replicas: who may be given requests, and how many at once."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from control_plane.activator.balancer import choose
from control_plane.activator.ejection import FIRST_REST_S, rest_s
from control_plane.activator.ticket import Slot, Ticket
from control_plane.fleet.replica import Endpoint
from infra.clock import Clock
from infra.contracts.base import ReplicaId

_HOLD_WEIGHT: Final = 0.1  # of the newest permit in the mean time that permits are held


class Permits:
    """Slots of READY replicas, and of those that finish what they have.

    A replica that fails rests, the longer the more it fails; where no other is usable, no longer
    than FIRST_REST_S at a time. Then it may prove itself, one request at a time. `changed` is
    called when a rest is over.
    """

    def __init__(self, *, clock: Clock, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._slots: dict[ReplicaId, Slot] = {}
        self._usable: list[Slot] = []  # of the slots, those that may be given requests
        self.mean_hold_s = 1.0

    @property
    def is_usable(self) -> bool:
        """Some replica may be given requests."""
        return bool(self._usable)

    @property
    def total(self) -> int:
        """Requests that the usable replicas take at once."""
        return sum(slot.max_concurrency for slot in self._usable)

    @property
    def taken(self) -> int:
        """Permits that are out."""
        return sum(slot.in_flight for slot in self._slots.values())

    def in_flight(self, replica_id: ReplicaId) -> int:
        slot = self._slots.get(replica_id)
        return 0 if slot is None else slot.in_flight

    def free(self, affinity: int | None = None) -> Slot | None:
        """The replica that the next request should go to; None while all permits are taken."""
        usable = self._usable
        if len(usable) == 1:
            return usable[0] if usable[0].in_flight < usable[0].max_concurrency else None
        return choose(usable, affinity)

    def take_back(self, ticket: Ticket, *, now: float) -> None:
        """The permits of a ticket are free again."""
        slot, ticket.slot = ticket.slot, None
        assert slot is not None, "it has a permit"
        slot.in_flight -= ticket.taken
        held_s = now - ticket.permitted_at
        self.mean_hold_s += _HOLD_WEIGHT * (held_s - self.mean_hold_s)
        if not slot.is_open and slot.in_flight == 0:
            self._slots.pop(slot.endpoint.replica_id, None)

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

    def trust(self, slot: Slot) -> bool:
        """The replica has begun to answer, whatever it did before; whether it was suspected."""
        if not slot.failures or slot.is_resting:
            return False
        slot.failures = 0
        return True

    def suspect(self, slot: Slot, *, now: float) -> None:
        """The replica failed a request."""
        if slot.is_resting:  # others were with it when it failed
            return
        slot.failures += 1
        slot.is_resting = True
        slot.rests_until = now + rest_s(slot.failures)
        self._index_usable()
        asyncio.get_running_loop().call_later(FIRST_REST_S, self._reconsider, slot)

    def check_integrity(self) -> None:
        """Asserts that the index says what the slots say."""
        for slot in self._slots.values():
            assert 0 <= slot.in_flight < 2 * slot.most
        assert self._usable == [slot for slot in self._slots.values() if slot.is_usable]

    def _reconsider(self, slot: Slot) -> None:
        """Ends a rest that is over, or that nobody is left to take requests during."""
        left_s = slot.rests_until - self._clock.now()
        if self._usable and left_s > 0:
            delay_s = min(left_s, FIRST_REST_S)
            asyncio.get_running_loop().call_later(delay_s, self._reconsider, slot)
            return
        slot.is_resting = False
        self._index_usable()
        self._changed()

    def _index_usable(self) -> None:
        self._usable = [slot for slot in self._slots.values() if slot.is_usable]
