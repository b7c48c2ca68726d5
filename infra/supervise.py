"""Long-running tasks that are never left dangling."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Never

import structlog

from infra.errors import StoreUnavailable

log = structlog.get_logger()


class TaskSet:
    """Owns background tasks: a failure is logged, `close` cancels and awaits them all."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Runs the coroutine until it ends or the set is closed."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancels what still runs and waits for it."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", task=task.get_name(), exc_info=error)


async def repeat(
    work: Callable[[], Awaitable[None] | None], *, every_s: float, on_failure: str
) -> Never:
    """Works for ever, however often that fails: it is logged by that name and tried again."""
    while True:
        await asyncio.sleep(every_s)
        try:
            if (rest := work()) is not None:
                await rest
        except StoreUnavailable as error:
            log.warning(on_failure, error=error.detail)
        except Exception:
            log.exception(on_failure)
