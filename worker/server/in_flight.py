"""Requests between arrival and their last byte, and how one is stopped from outside."""

import asyncio
from types import TracebackType

from infra.errors import PlatformError, ShuttingDown


class Disconnected(Exception):
    """The client has left; there is nobody to answer."""


class Interruption:
    """A stretch of the current task that others may end with an error of their choice."""

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._error: Exception | None = None

    def interrupt(self, error: Exception) -> None:
        """Makes the stretch raise `error` where it waits; only the first call counts."""
        if self._error is None:
            self._error = error
            if self._task is not None:
                self._task.cancel()

    def __enter__(self) -> None:
        if self._error is not None:
            raise self._error
        self._task = asyncio.current_task()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if kind is asyncio.CancelledError and self._error is not None and task is not None:
            task.uncancel()
            raise self._error from None


class InFlight:
    """Counts requests; while draining it takes no more."""

    def __init__(self) -> None:
        self._interruptions: set[Interruption] = set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._interruptions)

    def enter(self) -> Interruption:
        """A request begins; `leave` must follow. Raises ShuttingDown while draining."""
        if self.is_draining:
            raise ShuttingDown("the replica takes no more requests", retry_after_s=1)
        interruption = Interruption()
        self._interruptions.add(interruption)
        self._is_idle.clear()
        return interruption

    def leave(self, interruption: Interruption) -> None:
        """The request's answer has left, or it never will."""
        self._interruptions.discard(interruption)
        if not self._interruptions:
            self._is_idle.set()

    async def idle(self) -> None:
        """Waits until nothing is in flight."""
        await self._is_idle.wait()

    def interrupt_all(self, error: PlatformError) -> None:
        for interruption in tuple(self._interruptions):
            interruption.interrupt(error)
