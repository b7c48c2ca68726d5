"""Keeps the fork server's state: started and stopped on demand, rested after a crash."""

import asyncio
from collections.abc import Callable

import structlog

from infra.backoff import Backoff
from worker.node.launcher import Exit, Launcher
from worker.node.plan import ZygoteState

log = structlog.get_logger()

STEADY_S = 10.0  # who lived so long did not die of its start


class ZygoteKeeper:
    """Belongs to the event loop; `on_rested` is called when it may be started again."""

    def __init__(self, launcher: Launcher, on_rested: Callable[[], None]) -> None:
        self.state = ZygoteState.ABSENT
        self._launcher = launcher
        self._on_rested = on_rested
        self._loop = asyncio.get_running_loop()
        self._began_at = 0.0
        self._failures = 0

    def start(self) -> None:
        self.state, self._began_at = ZygoteState.BOOTING, self._loop.time()
        self._launcher.start_zygote()

    def stop(self) -> None:
        self.state = ZygoteState.ABSENT
        self._launcher.stop_zygote()

    def is_up(self) -> None:
        """It said so."""
        log.info("zygote.up", seconds=round(self._loop.time() - self._began_at, 3))
        self.state = ZygoteState.UP

    def has_ended(self, end: Exit) -> bool:
        """Its process is gone; whether that was not our wish."""
        if self.state is ZygoteState.ABSENT:
            return False
        is_steady = self._loop.time() - self._began_at > STEADY_S
        self._failures = 1 if is_steady else self._failures + 1
        rest_s = Backoff().delay_s(self._failures)
        log.warning("zygote.lost", end=str(end), rest_s=rest_s)
        self.state = ZygoteState.RESTING
        self._loop.call_later(rest_s, self._rested)
        return True

    def _rested(self) -> None:
        if self.state is ZygoteState.RESTING:
            self.state = ZygoteState.ABSENT
            self._on_rested()
