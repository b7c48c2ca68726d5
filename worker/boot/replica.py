"""The life of one worker process: parked, climbing, serving, draining, asleep or gone."""

import asyncio
import os
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, NoReturn

import structlog
import uvloop

from infra.clock import SystemClock
from infra.contracts.revision import ResolvedSource
from infra.contracts.stage import Stage
from infra.contracts.worker_link import (
    Asleep,
    Drain,
    Failed,
    FromWorker,
    Hello,
    Prepare,
    Ready,
    Start,
)
from infra.logs import configure
from worker.boot.failure import failure_of
from worker.boot.link import AgentLink
from worker.boot.ports import BuildServer, Climb, Climbed, Server
from worker.boot.process import (
    LOWEST_PRIORITY,
    give_memory_back,
    leave,
    memory_bytes,
    name_process,
    redirect_output,
)
from worker.boot.stages import StageTimer
from worker.boot.visible_gpu import see_only

log = structlog.get_logger()

FAILED = 1
ORPHANED = 3
_SETTLE_AFTER_S = 2.0  # the requests that woke the replica are on their way by then


def run_replica(
    descriptor: int, *, origin: Literal["fork", "spawn"], climb: Climb, build_server: BuildServer
) -> NoReturn:
    """Parks on the inherited link, then does as the agent says until the process ends."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(descriptor, origin, climb, build_server))
    except BaseException:
        traceback.print_exc()
    leave(FAILED)


async def _live(
    descriptor: int, origin: Literal["fork", "spawn"], climb: Climb, build_server: BuildServer
) -> NoReturn:
    link = await AgentLink.open(descriptor)
    link.tell(Hello(pid=os.getpid(), origin=origin))
    while True:
        start = await _parked(link, climb)
        see_only(start.gpus[:1])  # of several each rank has one
        await _live_as(start, link, climb, build_server)
        name_process("fl-sleeper")
        await asyncio.to_thread(give_memory_back)
        link.tell(Asleep(memory_bytes=memory_bytes()))


async def _live_as(start: Start, link: AgentLink, climb: Climb, build_server: BuildServer) -> None:
    """Returns when the replica has drained and what it was to its callers is gone."""
    replica = _Replica(link, start, climb, build_server)
    try:
        await replica.run()
    except Exception as error:
        log.exception("replica.failed", replica=start.assignment.replica_id)
        await replica.give_up(error)


async def _parked(link: AgentLink, climb: Climb) -> Start:
    """Waits to be started; ends the process when the agent has no use for it."""
    preparing: set[asyncio.Task[None]] = set()
    while True:
        match await link.hear():
            case Start() as start:
                for task in preparing:
                    task.cancel()
                return start
            case Prepare(sources=sources):
                preparing = {asyncio.create_task(_prepare(climb, sources))}
            case Drain():
                continue
            case None:
                leave(0)


async def _prepare(climb: Climb, sources: tuple[ResolvedSource, ...]) -> None:
    for source in sources:
        try:
            await asyncio.to_thread(climb.prepare, source)
        except Exception as error:  # the climb will say it again, to somebody who waits
            log.info("standby.unprepared", source=source.uri, why=str(error))


class _Replica:
    """One assignment in this process."""

    def __init__(
        self, link: AgentLink, start: Start, climb: Climb, build_server: BuildServer
    ) -> None:
        self._link = link
        self._assignment = start.assignment
        self._gpus = start.gpus
        self._host = start.host
        self._climb = climb
        self._build_server = build_server
        self._clock = SystemClock(start.clock)
        self._stages = StageTimer(self._clock, self._tell_from_any_thread)
        self._loop = asyncio.get_running_loop()
        self._told_to_drain: asyncio.Future[Drain] = self._loop.create_future()
        self._ending: asyncio.Task[NoReturn] | None = None
        self._log_path = start.log_path
        self._stages.done(Stage.RUNTIME)

    async def run(self) -> None:
        """Climbs, serves, drains, and returns asleep or ends the process.

        Raises what ended it before.
        """
        name_process("fl-replica")
        redirect_output(self._log_path)
        configure(as_json=False, stream=sys.stderr)
        listening = self._loop.create_task(self._listen())
        climbed = await asyncio.to_thread(self._climb, self._assignment, self._stages, self._gpus)
        server = await self._open(climbed)
        serving = self._loop.create_task(server.serve())
        serving.add_done_callback(self._server_ended)
        is_idle = asyncio.Event()
        settling = self._loop.create_task(self._settle(climbed, is_idle))
        drain = await self._told_to_drain
        serving.remove_done_callback(self._server_ended)
        has_finished = await server.drain(drain.deadline_s)
        await server.close()
        is_idle.set()
        await asyncio.gather(serving, settling)
        log.info("replica.drained", replica=self._assignment.replica_id)
        if self._ending is not None:
            await self._ending
        if not (drain.may_sleep and has_finished and await self._fall_asleep(climbed)):
            leave(0)
        listening.cancel()
        await asyncio.wait((listening,))

    async def _fall_asleep(self, climbed: Climbed) -> bool:
        """Whether the model is kept, and nothing else of the replica."""
        try:
            await climbed.engine.close()
            return await asyncio.to_thread(self._climb.sleep)
        except Exception:  # it has done its duty: not a failure of the replica
            log.exception("replica.sleepless", replica=self._assignment.replica_id)
            return False

    async def give_up(self, error: BaseException) -> NoReturn:
        """Says why, and ends the process."""
        self._tell_from_any_thread(Failed(failure=failure_of(error)))
        await asyncio.sleep(0)  # what was told from threads is written first
        await self._link.flush()
        leave(FAILED)

    async def _open(self, climbed: Climbed) -> Server:
        climbed.engine.on_failure = self._engine_died
        if climbed.followers is not None:
            climbed.followers.watch(self._engine_died)
        climbed.engine.start()
        server = self._build_server(climbed, self._assignment, self._clock)
        port = await server.bind(self._host)
        self._stages.part("server")
        self._stages.done(Stage.ENGINE)
        self._tell_from_any_thread(Ready(host=self._host, port=port))
        return server

    async def _settle(self, climbed: Climbed, is_idle: asyncio.Event) -> None:
        """A moment after the start, or when all requests are done, whichever is first."""
        if (settle_now := climbed.settle) is None:
            return

        def settle() -> None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
            settle_now(now=self._clock.now())

        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_AFTER_S):
                await is_idle.wait()
        with ThreadPoolExecutor(1, "settle") as thread:
            await self._loop.run_in_executor(thread, settle)

    async def _listen(self) -> None:
        while (message := await self._link.hear()) is not None:
            if isinstance(message, Drain) and not self._told_to_drain.done():
                self._told_to_drain.set_result(message)
        log.warning("agent.lost", replica=self._assignment.replica_id)
        leave(ORPHANED)

    def _server_ended(self, serving: asyncio.Task[None]) -> None:
        error = None if serving.cancelled() else serving.exception()
        if not self._told_to_drain.done():
            ended = RuntimeError("the server ended by itself")
            self._told_to_drain.set_exception(error or ended)

    def _engine_died(self, error: BaseException) -> None:
        self._ending = self._loop.create_task(self.give_up(error))

    def _tell_from_any_thread(self, message: FromWorker) -> None:
        self._loop.call_soon_threadsafe(self._link.tell, message)
