"""What a control plane does when it begins to lead, and when another one does."""

import asyncio

import structlog

from control_plane.activator.lines import Lines
from control_plane.autoscaler.loop import Autoscaler
from control_plane.deployments.service import Deployments
from control_plane.fleet.census import Census
from control_plane.fleet.leases import Leader, Standing
from infra.errors import NotLeader, StoreUnavailable
from infra.supervise import TaskSet

log = structlog.get_logger()

_AGAIN_S = 0.5
_RETRY_AFTER_S = 2


class Succession:
    """Requests are taken while we lead, with what is deployed, what the one before us learnt, and
    where its replicas ran, read anew when that begins.

    Who begins to follow sends its waiting requests away and ends its replicas when their requests
    have ended; the one that leads has machines of its own. While the store does not say who leads,
    what runs is used and nothing is decided.
    """

    def __init__(
        self,
        leader: Leader,
        deployments: Deployments,
        lines: Lines,
        autoscaler: Autoscaler,
        census: Census,
        tasks: TaskSet,
    ) -> None:
        self._leader = leader
        self._deployments = deployments
        self._lines = lines
        self._autoscaler = autoscaler
        self._census = census
        self._tasks = tasks
        self._reign: int | None = None  # the last one in which what is deployed was read

    async def begin(self) -> None:
        """Reads what is deployed; call once, before requests come."""
        self._leader.subscribe(self._changed)
        reign = self._leader.fence
        await self._deployments.load()
        await self._census.load()
        self._reign = reign

    def is_in_charge(self) -> bool:
        """Whether decisions may be made here, and what they are about is known."""
        fence = self._leader.fence
        return fence is not None and fence == self._reign

    def check(self) -> None:
        """Raises NotLeader while requests are another's to answer."""
        if self.is_in_charge():
            return
        if self._reign is None or self._leader.standing is not Standing.DOUBTS:
            raise _not_leader()

    def _changed(self, standing: Standing) -> None:
        match standing:
            case Standing.FOLLOWS:
                self._lines.dismiss(_not_leader())
                self._autoscaler.resign("another control plane leads")
            case Standing.LEADS:
                self._tasks.start(self._take_over(), name="take over")
            case Standing.DOUBTS:
                pass

    async def _take_over(self) -> None:
        """For as long as this reign lasts, until it is done."""
        reign = self._leader.fence
        while reign is not None and reign == self._leader.fence != self._reign:
            try:
                await self._deployments.load()
                await self._autoscaler.recall()
                await self._census.load()
                self._reign = reign
                log.info("leader.took-over", models=len(self._deployments.all()))
            except StoreUnavailable as error:
                log.warning("leader.not-taken-over", detail=error.detail)
            except Exception:
                log.exception("leader.not-taken-over")
            if reign != self._reign:
                await asyncio.sleep(_AGAIN_S)


def _not_leader() -> NotLeader:
    return NotLeader(
        "another control plane leads, or this one is just taking over",
        hint="send it to the one whose /readyz answers 200",
        retry_after_s=_RETRY_AFTER_S,
    )
