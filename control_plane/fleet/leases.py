"""Who leads: the port of the leader's lease, its memory adapter, and the task that holds it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from infra.clock import Clock
from infra.errors import StoreUnavailable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Leadership:
    """A granted lease. `fence` grows with every grant to another owner: it numbers the reigns."""

    owner: str
    fence: int


class LeaderLease(Protocol):
    """At most one owner at a time; raises StoreUnavailable where it cannot be asked."""

    async def acquire(self, owner: str, *, ttl_s: float) -> Leadership | None:
        """The lease; None while another owner has it. Its fence is the old one unless another
        owner had the lease meanwhile."""
        ...

    async def release(self, leadership: Leadership) -> None:
        """Gives the lease back, if it is still this one; may be repeated."""
        ...


class MemoryLeaderLease:
    """A lease among the owners of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: Leadership | None = None
        self._last_owner: str | None = None
        self._until = 0.0
        self._fence = 0

    async def acquire(self, owner: str, *, ttl_s: float) -> Leadership | None:
        now = self._clock.now()
        if self._held is not None and self._held.owner != owner and now < self._until:
            return None
        if self._last_owner != owner:
            self._last_owner = owner
            self._fence += 1
        self._held = Leadership(owner, self._fence)
        self._until = now + ttl_s
        return self._held

    async def release(self, leadership: Leadership) -> None:
        if self._held == leadership:
            self._held = None


class Standing(StrEnum):
    """How a control plane stands to the lead."""

    LEADS = "leads"
    FOLLOWS = "follows"  # another leads, as far as was heard
    DOUBTS = "doubts"  # the store does not say who leads: what runs runs on, nothing is decided


StandingListener = Callable[[Standing], None]


class Leader:
    """Keeps trying to lead, and renews while it does.

    It believes in its lease only until `ttl_s` after the last renewal was *sent*, by its own
    clock: a store that does not answer, or a stalled loop, ends its reign no later than the
    lease itself ends.
    """

    def __init__(
        self, lease: LeaderLease, owner: str, *, clock: Clock, ttl_s: float = 10.0
    ) -> None:
        self._lease = lease
        self._owner = owner
        self._clock = clock
        self._ttl_s = ttl_s
        self._held: Leadership | None = None
        self._until = 0.0
        self._is_anothers = False  # so the store said when it was last heard
        self._listeners: list[StandingListener] = []
        self._told: tuple[Standing, int | None] = (Standing.DOUBTS, None)

    def is_leading(self) -> bool:
        """Whether decisions may be made here, now."""
        return self._held is not None and self._clock.now() < self._until

    @property
    def standing(self) -> Standing:
        """Whether we lead, now, and if not, what is known of who does."""
        if self.is_leading():
            return Standing.LEADS
        return Standing.FOLLOWS if self._is_anothers else Standing.DOUBTS

    @property
    def fence(self) -> int | None:
        """The fence of the reign; None while we do not lead."""
        return self._held.fence if self._held is not None and self.is_leading() else None

    def subscribe(self, listener: StandingListener) -> None:
        """Calls back when it is noticed that we stand otherwise, or lead in a new reign."""
        self._listeners.append(listener)

    async def try_once(self) -> bool:
        """Acquires or renews; returns whether we lead."""
        sent_at = self._clock.now()
        try:
            self._held = await self._lease.acquire(self._owner, ttl_s=self._ttl_s)
            self._is_anothers = self._held is None
            self._until = sent_at + self._ttl_s
        except StoreUnavailable as error:
            log.warning("lease.unavailable", detail=error.detail)
        except Exception:  # what it is does not matter: whoever stops trying never leads again
            log.exception("lease.unavailable")
        self._tell()
        return self.is_leading()

    async def run(self) -> None:
        """Leads whenever it can, until cancelled; then gives the lease back."""
        try:
            while True:
                await self.try_once()
                await asyncio.sleep(self._ttl_s / 3)
        finally:
            held, self._held = self._held, None
            self._tell()
            if held is not None:
                await self._lease.release(held)

    def _tell(self) -> None:
        standing = self.standing
        if (standing, self.fence) == self._told:
            return
        self._told = (standing, self.fence)
        log.info("leader.changed", owner=self._owner, standing=standing.value)
        for listener in self._listeners:
            try:
                listener(standing)
            except Exception:
                log.exception("leader.listener-failed", listener=repr(listener))
