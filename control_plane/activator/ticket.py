"""A request's place in the waiting line, from its arrival to its end."""

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from control_plane.activator.balancer import hash_of
from control_plane.fleet.replica import Endpoint
from infra.contracts.base import RevisionName
from infra.contracts.tenancy import TenantName
from infra.errors import PlatformError


class Place(Enum):
    """Where a request is."""

    OUTSIDE = auto()  # not admitted yet
    WAITING = auto()  # in the line, without a permit
    IN_FLIGHT = auto()  # it has a permit, or had one and is about to queue again
    OVER = auto()  # it left, or was sent away


@dataclass(eq=False, slots=True)
class Slot:
    """The permits of one READY replica.

    After a failure it rests; then it gets one request at a time, until one is answered.
    """

    endpoint: Endpoint
    in_flight: int = 0
    is_open: bool = True  # the fleet says READY
    failures: int = 0  # in a row
    is_resting: bool = False
    rests_until: float = 0.0
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.seed = hash_of(self.endpoint.replica_id.encode())

    @property
    def is_usable(self) -> bool:
        return self.is_open and not self.is_resting

    @property
    def max_concurrency(self) -> int:
        return 1 if self.failures else self.endpoint.max_concurrency


class Holder(Protocol):
    """Whose ticket it is; told from the event loop, never within a call of the line's."""

    def granted(self) -> None:
        """The ticket that waited has a permit; its holder may have left meanwhile."""
        ...

    def sent_away(self, error: PlatformError) -> None:
        """The ticket that waited is over."""
        ...


@dataclass(eq=False, slots=True)
class Ticket:
    """One request in line; `arrival` numbers requests in the order they came, and of one tenant's
    requests lower `priority` goes first; `weight` is its tenant's share of turns. `most_cold_s` is
    how long its client lets it wait while no replica is ready, `most_held_s` how long in all; those
    with one `affinity` meet at one replica.

    Seconds waited are kept apart: `cold_s` while no replica was ready, `queue_s` while replicas
    were ready and their permits taken. `held_until` is set while it waits. `revision` is the one it
    was admitted to.
    """

    arrival: int
    size: int
    revision: RevisionName
    tenant: TenantName
    priority: int = 0
    most_cold_s: float = math.inf
    most_held_s: float = math.inf
    weight: int = 1
    affinity: int | None = None
    place: Place = Place.OUTSIDE
    slot: Slot | None = None
    holder: Holder | None = field(default=None, repr=False)
    permitted_at: float = 0.0
    was_cold: bool = False
    cold_s: float = 0.0
    queue_s: float = 0.0
    held_until: float = math.inf
    cold_joined: float = field(default=0.0, repr=False)  # the line's clocks when it joined
    queue_joined: float = field(default=0.0, repr=False)

    def permit(self, slot: Slot, *, now: float) -> None:
        """It takes one of the slot's permits."""
        slot.in_flight += 1
        self.slot = slot
        self.place = Place.IN_FLIGHT
        self.permitted_at = now

    @property
    def endpoint(self) -> Endpoint:
        """The replica it may use."""
        assert self.slot is not None, "it has a permit"
        return self.slot.endpoint
