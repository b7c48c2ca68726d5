"""Reads the GPUs again and again, in a thread that a driver may hold up for ever."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from infra.contracts.node import Gpu
from worker.node.agent import Agent
from worker.node.machine import GpuReader

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pace:
    """How often GPUs are read, and how long a driver is waited for."""

    read_s: float = 5.0
    silent_s: float = 60.0  # without a reading, before no GPU is trusted
    first_s: float = 20.0  # one that has to be loaded takes seconds


PACE = Pace()


class GpuWatch:
    """Tells the agent every reading, and at once one that begins after a GPU was given back."""

    def __init__(
        self, agent: Agent, open_reader: Callable[[], GpuReader], pace: Pace = PACE
    ) -> None:
        self._agent = agent
        self._open_reader = open_reader
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._is_wanted = threading.Event()
        self._is_closed = False
        self._first = asyncio.Event()
        self._last: tuple[Gpu, ...] = ()
        self._silence: asyncio.TimerHandle | None = None
        agent.gpu_table.on_given_back = self._is_wanted.set
        # Not of a pool: nobody may have to wait for it when the process ends.
        self._thread = threading.Thread(target=self._read_on, name="gpus", daemon=True)

    async def start(self) -> None:
        """Returns when the GPUs are known, or are not after a while."""
        self._thread.start()
        try:
            async with asyncio.timeout(self._pace.first_s):
                await self._first.wait()
        except TimeoutError:
            log.warning("gpus.unread", seconds=self._pace.first_s)

    def close(self) -> None:
        """No reading is told any more; one that hangs is left to hang."""
        self._is_closed = True
        if self._silence is not None:
            self._silence.cancel()
        self._is_wanted.set()

    def _read_on(self) -> None:
        """The thread."""
        reader = self._open_reader()
        while not self._is_closed:
            self._is_wanted.clear()
            after = self._agent.gpu_table.num_given_back
            gpus = reader.read()
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._heard, gpus, after)
            self._is_wanted.wait(self._pace.read_s)

    def _heard(self, gpus: tuple[Gpu, ...], after: int) -> None:
        if self._is_closed:
            return
        self._last = gpus
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self._loop.call_later(self._pace.silent_s, self._distrust)
        self._agent.on_gpus(gpus, after=after)
        self._first.set()

    def _distrust(self) -> None:
        log.error("gpus.silent", seconds=self._pace.silent_s)
        trouble = f"its driver has not answered for {self._pace.silent_s:g} s"
        silent = tuple(gpu.model_copy(update={"trouble": trouble}) for gpu in self._last)
        self._agent.on_gpus(silent, after=0)
