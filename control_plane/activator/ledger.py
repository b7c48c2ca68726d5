"""Where the accounts of cold starts go: the counters and the timeline store."""

import structlog

from control_plane.activator.cold_start import explain
from control_plane.activator.exchange import Exchange
from control_plane.activator.meters import ActivatorMeters
from control_plane.fleet.state import Fleet
from control_plane.fleet.timeline import TimelineStore
from infra.contracts.revision import Revision
from infra.contracts.stage import ColdStartReport
from infra.errors import PlatformError
from infra.supervise import TaskSet

log = structlog.get_logger()


class Ledger:
    """Draws up the report of a cold request and stores it beside the answer, never before it."""

    def __init__(
        self, fleet: Fleet, store: TimelineStore, meters: ActivatorMeters, tasks: TaskSet
    ) -> None:
        self._fleet = fleet
        self._store = store
        self._meters = meters
        self._tasks = tasks

    def enter(self, exchange: Exchange, revision: Revision) -> ColdStartReport:
        """The report of a request whose first token has come; see `explain`."""
        report = explain(exchange.call, revision, exchange.tries, self._fleet)
        self._meters.observe(report)
        exchange.recording = self._tasks.start(self._record(report), name="cold-start-report")
        return report

    async def _record(self, report: ColdStartReport) -> None:
        try:
            await self._store.append(report)
        except PlatformError as error:
            log.warning("cold-start.not-stored", request_id=report.request_id, error=error.detail)
