"""Where the accounts of cold starts go: the counters and the timeline store."""

import asyncio

import structlog

from control_plane.activator.cold_start import explain
from control_plane.activator.exchange import Exchange
from control_plane.activator.meters import ActivatorMeters
from control_plane.fleet.state import Fleet
from control_plane.fleet.timeline import TimelineStore
from infra.contracts.base import ModelName
from infra.contracts.revision import Revision
from infra.contracts.stage import ColdStartReport
from infra.errors import PlatformError
from infra.supervise import TaskSet

log = structlog.get_logger()


class Ledger:
    """Draws up the report of a cold request and stores it beside the answer, never before it.

    What comes while reports are being written is written together after them: a burst at zero is
    a few writes.
    """

    def __init__(
        self, fleet: Fleet, store: TimelineStore, meters: ActivatorMeters, tasks: TaskSet
    ) -> None:
        self._fleet = fleet
        self._store = store
        self._meters = meters
        self._tasks = tasks
        self._next: dict[ModelName, list[ColdStartReport]] | None = None
        self._recording: asyncio.Task[None] | None = None

    def enter(self, exchange: Exchange, revision: Revision) -> ColdStartReport:
        """The report of a request whose first token has come; see `explain`."""
        report = explain(exchange.call, revision, exchange.tries, self._fleet)
        self._meters.observe(report)
        if self._next is None:
            self._next = {}
            recording = self._record(self._next, after=self._recording)
            self._recording = self._tasks.start(recording, name="cold-start-reports")
        self._next.setdefault(report.model, []).append(report)
        exchange.recording = self._recording
        return report

    async def _record(
        self,
        batch: dict[ModelName, list[ColdStartReport]],
        *,
        after: asyncio.Task[None] | None,
    ) -> None:
        if after is not None:
            await asyncio.wait((after,))
        self._next = None
        for model, reports in batch.items():
            try:
                await self._store.append(model, reports)
            except PlatformError as error:
                count = len(reports)
                log.warning("cold-starts.not-stored", model=model, count=count, error=error.detail)
