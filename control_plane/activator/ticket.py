"""A request's place in the waiting line, from its arrival to its end."""

import math
from enum import Enum, auto
from typing import Final, Protocol

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


# A member that is looked up in its class takes eight times as long.
OUTSIDE: Final = Place.OUTSIDE
WAITING: Final = Place.WAITING
IN_FLIGHT: Final = Place.IN_FLIGHT
OVER: Final = Place.OVER


class Slot:
    """The permits of one READY replica.

    After a failure it rests; then it gets one request at a time, until one is answered.
    """

    __slots__ = (
        "endpoint",
        "failures",
        "in_flight",
        "is_open",
        "is_resting",
        "most",
        "rests_until",
        "seed",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint: Final = endpoint
        self.seed: Final = hash_of(endpoint.replica_id.encode())
        self.most: Final = endpoint.max_concurrency
        self.in_flight = 0
        self.is_open = True  # the fleet says READY
        self.failures = 0  # in a row
        self.is_resting = False
        self.rests_until = 0.0

    @property
    def is_usable(self) -> bool:
        return self.is_open and not self.is_resting

    @property
    def max_concurrency(self) -> int:
        return 1 if self.failures else self.most


class Holder(Protocol):
    """Whose ticket it is; told from the event loop, never within a call of the line's."""

    def granted(self) -> None:
        """The ticket that waited has a permit; its holder may have left meanwhile."""
        ...

    def sent_away(self, error: PlatformError) -> None:
        """The ticket that waited is over."""
        ...


class Ticket:
    """One request in line; `arrival` numbers requests in the order they came, and of one tenant's
    requests lower `priority` goes first; `weight` is its tenant's share of turns. `most_cold_s` is
    how long its client lets it wait while no replica is ready, `most_held_s` how long in all; those
    with one `affinity` meet at one replica.

    Seconds waited are kept apart: `cold_s` while no replica was ready, `queue_s` while replicas
    were ready and their permits taken. `held_until` is set while it waits. `revision` is the one it
    was admitted to.

    It takes a permit for each of its `sequences`, at most all of one replica's, and needs one that
    is free: what it takes beyond those that are makes others wait, so no size waits for ever.
    """

    __slots__ = (
        "affinity",
        "arrival",
        "cold_joined",
        "cold_s",
        "held_until",
        "holder",
        "most_cold_s",
        "most_held_s",
        "permitted_at",
        "place",
        "priority",
        "queue_joined",
        "queue_s",
        "revision",
        "sequences",
        "size",
        "slot",
        "taken",
        "tenant",
        "was_cold",
        "weight",
    )

    def __init__(
        self,
        arrival: int,
        size: int,
        revision: RevisionName,
        tenant: TenantName,
        priority: int = 0,
        most_cold_s: float = math.inf,
        most_held_s: float = math.inf,
        weight: int = 1,
        affinity: int | None = None,
        sequences: int = 1,
    ) -> None:
        self.arrival: Final = arrival
        self.size: Final = size
        self.revision: Final = revision
        self.tenant: Final = tenant
        self.priority: Final = priority
        self.most_cold_s: Final = most_cold_s
        self.most_held_s: Final = most_held_s
        self.weight: Final = weight
        self.affinity: Final = affinity
        self.sequences: Final = sequences
        self.taken = 0
        self.place: Place = OUTSIDE
        self.slot: Slot | None = None
        self.holder: Holder | None = None
        self.permitted_at = 0.0
        self.was_cold = False
        self.cold_s = 0.0
        self.queue_s = 0.0
        self.held_until = math.inf
        self.cold_joined = 0.0  # the line's clocks when it joined
        self.queue_joined = 0.0

    def permit(self, slot: Slot, *, now: float) -> None:
        """It takes as many of the slot's permits as it has sequences."""
        self.taken = min(self.sequences, slot.most)
        slot.in_flight += self.taken
        self.slot = slot
        self.place = IN_FLIGHT
        self.permitted_at = now

    @property
    def endpoint(self) -> Endpoint:
        """The replica it may use."""
        assert self.slot is not None, "it has a permit"
        return self.slot.endpoint
