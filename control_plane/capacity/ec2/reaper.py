"""Ends instances with our tag that no group of ours has: of an interrupted apply, or let go."""

from typing import Final

import structlog

from control_plane.capacity.ec2.calls import Calls
from control_plane.capacity.ec2.view import View
from infra.clock import Clock

log = structlog.get_logger()

_EVERY_S: Final = 300.0
_AT_ONCE: Final = 50


class Reaper:
    """Looks every few minutes; the tag `firstlight:ttl-s` says how long one is left alone."""

    def __init__(self, calls: Calls, *, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._looks_at = 0.0

    async def reap(self, view: View) -> None:
        """Ends the orphans of a view, if it is time to. Raises what `Calls` raises."""
        now = self._clock.now()
        if now < self._looks_at:
            return
        self._looks_at = now + _EVERY_S
        orphans = list(view.orphans(now=now))[:_AT_ONCE]
        if orphans:
            log.warning("ec2.orphans-ended", instances=orphans)
            await self._calls(self._calls.clients.ec2.terminate_instances, InstanceIds=orphans)
