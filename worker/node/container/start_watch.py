"""Follows one container's start at the runtime: what it reads of its image, and its end."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import structlog

from infra.contracts.stage import Moved, Stage
from infra.contracts.worker_link import FromWorker, ImageRead, Ready, StageDone
from worker.node.container.containers import Containers

log = structlog.get_logger()


class StartWatch:
    """Belongs to the event loop. Nobody waits for what it asks the runtime, nor fails for it.

    It asks when the weights are there, while the engine is made, and again at the end: the account
    of a request may be closed within milliseconds of that.
    """

    def __init__(
        self,
        name: str,
        containers: Containers,
        threads: Executor,
        tell: Callable[[FromWorker], None],
    ) -> None:
        self._name = name
        self._containers = containers
        self._threads = threads
        self._tell = tell
        self._is_over = False

    def heard(self, message: FromWorker) -> None:
        """What the worker says. It starts once: who wakes has its image."""
        if self._is_over:
            return
        match message:
            case StageDone(timing=timing) if timing.stage is Stage.WEIGHTS:
                self._ask(lambda: self._containers.read(self._name))
            case Ready():
                self._is_over = True
                self._ask(self._end)
            case _:
                pass

    def _end(self) -> Moved | None:
        """Blocks."""
        read = self._containers.read(self._name)
        self._containers.started(self._name)
        return read

    def _ask(self, call: Callable[[], Moved | None]) -> None:
        asking = asyncio.get_running_loop().run_in_executor(self._threads, call)
        asking.add_done_callback(self._answered)

    def _answered(self, asking: "asyncio.Future[Moved | None]") -> None:
        if asking.cancelled():
            return
        if (error := asking.exception()) is not None:
            log.warning("container.start-not-told", container=self._name, why=str(error))
        elif (read := asking.result()) is not None:
            self._tell(ImageRead(read=read))
