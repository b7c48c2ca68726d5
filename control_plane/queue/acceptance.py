"""Makes jobs of orders: those that come while others are being written go to the store together."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence

import structlog

from control_plane.queue.job import Job
from control_plane.queue.order import Idempotency, NewJob, Order
from control_plane.queue.problems import may_be_kept
from control_plane.queue.store import JobStore
from infra.clock import Clock
from infra.contracts.base import JobId, ModelName
from infra.errors import StoreUnavailable
from infra.supervise import TaskSet

log = structlog.get_logger()

MOST_AT_ONCE = 64
MOST_BYTES_AT_ONCE = 8 << 20  # of bodies: Redis does nothing else while it takes them
MOST_CALLS = 2  # under way: one is written while the next one is made
_RANDOM_BYTES = 1024  # asked of the kernel at a time


Told = Callable[[NewJob | Job | Exception], None]


class Acceptance:
    """One call of the store, and one write to its disk, is for all orders that came while others
    were under way: the more there are, the less each costs.

    A second call begins while one is under way once it takes as many orders, so that not every
    other one is for the first that comes back.
    """

    def __init__(
        self, store: JobStore, *, clock: Clock, waits: Callable[[ModelName], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._waits = waits
        self._waiting: list[tuple[NewJob, Told]] = []
        self._under_way: list[int] = []  # how many each call takes
        self._random = ""
        self._is_about_to_ask = False
        self._tasks = TaskSet()

    def accept(self, order: Order, told: Told) -> None:
        """Tells once: of the job, which is new or has the order's key, and is on disk, or of a
        StoreUnavailable, IdempotencyKeyReused or JobsFull."""
        if not self._random:
            self._random = os.urandom(_RANDOM_BYTES).hex()
        random, self._random = self._random[:16], self._random[16:]
        self._waiting.append((_new_job(order, random, now=self._clock.now()), told))
        self._ask_soon()

    def _ask_soon(self) -> None:
        under_way = self._under_way
        least = min(under_way, default=1)
        may_ask = len(under_way) < MOST_CALLS and len(self._waiting) >= least
        if may_ask and not self._is_about_to_ask:
            self._is_about_to_ask = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        self._is_about_to_ask = False
        count = _fitting(self._waiting)
        if not count:  # they were told that the store is away
            return
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        self._under_way.append(count)
        self._tasks.start(self._accept(some, count), name="accept jobs")
        self._ask_soon()

    async def _accept(self, some: list[tuple[NewJob, Told]], count: int) -> None:
        outcomes: Sequence[NewJob | Job | Exception]
        try:
            outcomes = await self._store.accept([new for new, _ in some], now=self._clock.now())
        except Exception as error:
            if isinstance(error, StoreUnavailable):  # who came meanwhile has waited as long
                some, self._waiting = some + self._waiting, []
                outcomes = [may_be_kept(error, new) for new, _ in some]
            else:
                outcomes = [error] * len(some)
        finally:
            self._under_way.remove(count)
            self._ask_soon()
        for (_, told), outcome in zip(some, outcomes, strict=True):
            try:
                told(outcome)
            except Exception:  # the others are to be told, too
                log.exception("jobs.not-told")
        for model in {it.order.model for it in outcomes if isinstance(it, NewJob)}:
            self._waits(model)


def _fitting(waiting: Sequence[tuple[NewJob, Told]]) -> int:
    """How many of the first ones one call takes; a body that is too large goes alone."""
    size = 0
    for count, (new, _) in enumerate(waiting[:MOST_AT_ONCE]):
        size += len(new.order.body)
        if count and size > MOST_BYTES_AT_ONCE:
            return count
    return min(len(waiting), MOST_AT_ONCE)


def _new_job(order: Order, random: str, *, now: float) -> NewJob:
    milliseconds = round(now * 1000)  # as the store keeps it
    job_id = JobId(f"job_{milliseconds:012x}{random}")  # ids sort by age
    return NewJob(job_id, milliseconds / 1000, order, _idempotency(order))


def _idempotency(order: Order) -> Idempotency | None:
    """The key and the whole order as digests."""
    terms = order.terms
    if terms.idempotency_key is None:
        return None
    asked = (order.model, order.path, terms.deadline_s, terms.max_attempts, terms.webhook_url)
    fingerprint = hashlib.sha256(repr(asked).encode() + order.body).hexdigest()
    return Idempotency(hashlib.sha256(terms.idempotency_key.encode()).hexdigest(), fingerprint)
