"""Takes away, slowly, what executions that died have left in the object store."""

from collections.abc import Callable

import structlog

from control_plane.queue.answers import Answers
from infra.supervise import repeat

log = structlog.get_logger()

LOOK_S = 60.0
MOST_AT_ONCE = 100


class Collector:
    """Looks at MOST_AT_ONCE objects every LOOK_S, round and round."""

    def __init__(self, answers: Answers, *, is_leading: Callable[[], bool]) -> None:
        self._answers = answers
        self._is_leading = is_leading
        self._after = ""

    async def run(self) -> None:
        """Works until cancelled."""
        await repeat(self._look, every_s=LOOK_S, on_failure="answers.not-collected")

    async def _look(self) -> None:
        if not self._is_leading():
            return
        self._after, dropped = await self._answers.collect(after=self._after, count=MOST_AT_ONCE)
        if dropped:
            log.info("answers.collected", dropped=dropped)
