"""Where the accounts of cold starts go: the counters and the timeline store."""

import asyncio
import math
from collections import deque
from typing import Final

import structlog

from control_plane.activator.cold_start import explain, server_timing
from control_plane.activator.exchange import Exchange
from control_plane.activator.meters import ActivatorMeters
from control_plane.fleet.state import Fleet
from control_plane.fleet.timeline import Account, TimelineStore
from infra.contracts.base import ModelName, RequestId
from infra.contracts.revision import Revision
from infra.contracts.stage import ColdStartReport
from infra.errors import PlatformError
from infra.supervise import TaskSet

log = structlog.get_logger()

_TOGETHER_S: Final = 0.05
_MOST_FORGOTTEN: Final = 10_000  # models, those forgotten last


class Ledger:
    """Draws up the account of a cold request, and stores it beside the answer, never before it.

    A burst at zero is a few writes: what comes within a moment, or while the last ones are being
    written, is written together, and of each model only what the store keeps. Who reads waits for
    what was entered before.
    """

    def __init__(
        self, fleet: Fleet, store: TimelineStore, meters: ActivatorMeters, tasks: TaskSet
    ) -> None:
        self._fleet = fleet
        self._store = store
        self._meters = meters
        self._tasks = tasks
        self._next: dict[ModelName, deque[Account]] | None = None
        self._writing: asyncio.Task[None] | None = None  # the last one of a chain
        self._forgotten_at: dict[ModelName, float] = {}

    def enter(self, exchange: Exchange, revision: Revision) -> bytes:
        """Notes a request whose first token has come, see `explain`; its `Server-Timing`."""
        account = explain(exchange.call, revision, exchange.tries, self._fleet)
        seconds = account.seconds()
        self._meters.observe(revision.model, seconds)
        if exchange.call.arrived_at <= self._forgotten_at.get(revision.model, -math.inf):
            return server_timing(seconds)  # it is nothing to a namesake deployed later
        if self._next is None:
            self._next = {}
            writing = self._write(self._next, after=self._writing)
            self._writing = self._tasks.start(writing, name="cold-start-reports")
        accounts = self._next.get(revision.model)
        if accounts is None:
            accounts = self._next[revision.model] = deque(maxlen=self._store.cap)
        accounts.append(account)
        return server_timing(seconds)

    async def last(self, model: ModelName, count: int) -> tuple[ColdStartReport, ...]:
        """See TimelineStore."""
        await self.settle()
        return await self._store.last(model, count)

    async def find(self, model: ModelName, request_id: RequestId) -> ColdStartReport | None:
        """See TimelineStore."""
        await self.settle()
        return await self._store.find(model, request_id)

    async def forget(self, model: ModelName, *, now: float) -> None:
        """See TimelineStore; requests that came before `now` and are still held or served leave no
        report, either."""
        self._forgotten_at.pop(model, None)
        self._forgotten_at[model] = now
        if len(self._forgotten_at) > _MOST_FORGOTTEN:
            del self._forgotten_at[next(iter(self._forgotten_at))]
        await self.settle()
        await self._store.forget(model)

    async def settle(self) -> None:
        """Returns when what was entered is stored, or could not be."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))

    async def _write(
        self, batch: dict[ModelName, deque[Account]], *, after: asyncio.Task[None] | None
    ) -> None:
        await asyncio.sleep(_TOGETHER_S)
        if after is not None:
            await asyncio.wait((after,))
        self._next = None
        for model, accounts in batch.items():
            try:
                await self._store.append(model, [account.report() for account in accounts])
            except PlatformError as error:
                count = len(accounts)
                log.warning("cold-starts.not-stored", model=model, count=count, error=error.detail)
