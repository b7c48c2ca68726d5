"""One worker in a container, from its launch until nothing of it is left."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from infra.contracts.node import ReplicaAssignment
from infra.contracts.stage import Stage
from infra.contracts.worker_link import (
    Asleep,
    Drain,
    Failed,
    FromWorker,
    Hello,
    Prepare,
    Ready,
    StageDone,
    Start,
    ToWorker,
)
from infra.errors import PlatformError, ReplicaOutOfMemory
from worker.boot.entrance import greet
from worker.boot.failure import failure_of
from worker.node.child import Child
from worker.node.container.cgroup import Cgroup
from worker.node.container.containers import ContainerFailed, Containers
from worker.node.container.ends import explained
from worker.node.container.furnishing import Furnishing, Furniture, limits_for
from worker.node.container.image import Image
from worker.node.container.place import Place
from worker.node.container.relay import Relay
from worker.node.container.spec import INSIDE, Limits
from worker.node.container.start_watch import StartWatch
from worker.node.launcher import Exit
from worker.node.logs import last_line
from worker.node.worker_link import WorkerLink

log = structlog.get_logger()

LAST_WORDS_S = 0.2  # between the end of a worker and the end of its link, whichever is first
STATUS_S = 3.0  # for the runtime to tell how it ended; longer where it is away, and nobody waits
REMOVE_AGAIN_S = 1.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Site:
    """What all containers of a node have in common."""

    containers: Containers
    furnishing: Furnishing
    threads: Executor  # for calls that block
    specify: Callable[[Image, str, Place, int], dict[str, Any]]
    cgroup: Callable[[str], str]


@dataclass(slots=True)
class _Life:
    """What there is of the container so far."""

    place: Place | None = None
    child: Child | None = None
    link: WorkerLink | None = None
    relay: Relay | None = None
    furniture: Furniture | None = None
    was_fetched: bool = False
    has_said_hello: bool = False
    memory_bytes: int | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    silent: asyncio.Event = field(default_factory=asyncio.Event)


class ContainerWorker:
    """Belongs to the event loop. `live` is its life, and returns when it is over.

    `tell` hears what it says, `ended` how it ended, once, as soon as its processes are gone;
    the container itself may be removed later, when containerd is back.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        site: Site,
        *,
        tell: Callable[[FromWorker], None],
        ended: Callable[[Exit], None],
    ) -> None:
        self._name = name
        self._folder = folder / name
        self._site = site
        self._tell = tell
        self._ended = ended
        self._cgroup = Cgroup(site.cgroup(name))
        self._life = _Life()
        self._start = StartWatch(name, site.containers, site.threads, tell)
        self._living: asyncio.Task[None] | None = None
        self._is_killed = False
        self._orders: asyncio.Queue[ToWorker] = asyncio.Queue()
        self._address: tuple[str, int] | None = None

    def send(self, message: ToWorker) -> None:
        """One after the other: what is needed for a start is put in place before it is told."""
        self._orders.put_nowait(message)

    def kill(self) -> None:
        """SIGKILL to everything in the container, or the end of its launch; may be repeated."""
        if self._life.child is not None:
            self._life.child.kill()
        elif self._living is not None and not self._is_killed:
            self._living.cancel()
        self._is_killed = True

    async def live(self, image: Callable[[], Awaitable[Image]], *, ranks: int) -> None:
        """From the wait for the image on; never raises."""
        self._living = asyncio.current_task()
        end = Exit(status=-9)
        try:
            if self._is_killed:
                raise asyncio.CancelledError
            await self._run(await image(), ranks)
            end = Exit()
        except asyncio.CancelledError:
            pass  # killed before there was a process
        except PlatformError as error:
            end = Exit(why=error.detail, code=error.slug)
        except (ContainerFailed, OSError) as error:
            end = Exit(why=f"its container did not start: {error}")
        except Exception as error:  # whatever is wrong with us, nothing of it may be left
            log.exception("container.broken", container=self._name)
            end = Exit(why=f"the agent lost it: {error}")
        await self._end(end)

    async def _run(self, image: Image, ranks: int) -> None:
        """Until the container's first process is gone."""
        self._life.place = place = Place(self._folder)
        spec = self._site.specify(image, self._name, place, ranks)
        start = self._site.containers.start
        starting = self._blocking(lambda: start(self._name, image, spec, output=place.output))
        try:
            pid = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait({starting})  # so that what it made can be removed
            raise
        life = self._life
        life.child = Child(pid, lambda _: life.gone.set())
        if self._is_killed:
            life.child.kill()
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serve_link(place, pid))
            await life.gone.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await life.silent.wait()
            serving.cancel()

    async def _serve_link(self, place: Place, pid: int) -> None:
        """Hears the worker, and does as it is told for it."""
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(place.link)
        place.link.close()  # one worker a container: nobody can pose as it
        try:
            greet(connection, place.http)
        except OSError:  # it is gone
            connection.close()
            return
        finally:
            place.http.close()
        self._life.link = link = WorkerLink(self._said, self._link_closed)
        await loop.create_unix_connection(lambda: link, sock=connection)
        while True:
            match await self._orders.get():
                case Start() as start:
                    await self._begin(start, link, place, pid)
                case Drain() as drain:
                    if self._life.relay is not None:
                        self._life.relay.stop_accepting()
                    link.send(drain)
                case Prepare():
                    continue  # a container has the files of no model before it is claimed

    async def _begin(self, start: Start, link: WorkerLink, place: Place, pid: int) -> None:
        """Furnishes the container for its model, then tells it."""
        limits = limits_for(start.assignment)
        self._life.memory_bytes = limits.memory_bytes
        try:
            self._limit(limits)
            assignment = await self._furnish(start.assignment, pid)
            log_name = place.put_log(Path(start.log_path))
            self._life.relay = relay = Relay(place.http_path)
            self._address = start.host, await relay.open(start.host)
        except (PlatformError, OSError) as error:
            self._tell(Failed(failure=failure_of(error)))
            self.kill()
            return
        link.send(
            start.model_copy(
                update={
                    "assignment": assignment,
                    "log_path": f"{INSIDE}/{log_name}",
                }
            )
        )

    def _limit(self, limits: Limits) -> None:
        try:
            self._cgroup.limit(limits)
        except OSError as error:
            if error.errno != errno.EBUSY or limits.memory_bytes is None:
                raise
            raise ReplicaOutOfMemory(
                f"a worker needs more memory than {limits.memory_bytes >> 20} MiB before it has "
                "loaded anything",
                hint="give the model more: resources.memory_mib",
            ) from error

    async def _furnish(self, assignment: ReplicaAssignment, pid: int) -> ReplicaAssignment:
        """A worker that slept wakes as what it was, with everything in its place."""
        furnishing = self._site.furnishing
        furniture = self._life.furniture
        self._life.was_fetched = False
        if furniture is None:
            furniture = await furnishing.bring(assignment, self._tell)
            self._life.was_fetched = furniture.was_fetched
            there = furniture
            await self._blocking(lambda: furnishing.mount(assignment, there, pid))
            self._life.furniture = there
        return furnishing.as_seen_inside(assignment, furniture)

    def _said(self, message: FromWorker) -> None:
        match message:
            case Hello():
                self._life.has_said_hello = True
            case StageDone(timing=timing) if timing.stage is Stage.RUNTIME:
                if self._life.was_fetched:  # told before the fetch began
                    return
            case Ready():
                if self._address is None:  # an address of its own choice is none of ours
                    return
                message = Ready(host=self._address[0], port=self._address[1])
            case Asleep():
                self._close_relay()
                if self._life.place is not None:
                    self._life.place.take_logs_away()
            case _:
                pass
        self._tell(message)
        self._start.heard(message)

    def _link_closed(self) -> None:
        """Of no use without its link."""
        self._life.silent.set()
        if self._life.child is not None:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._life.child.kill)

    async def _end(self, end: Exit) -> None:
        """Removes everything; the end is told with its status, or without where that is away."""
        if self._life.relay is not None:
            self._life.relay.stop_accepting()
        if self._life.link is not None:
            self._life.link.close()
        kills = self._cgroup.out_of_memory_kills()
        removing = asyncio.create_task(self._remove())
        await asyncio.wait({removing}, timeout=STATUS_S)
        status = removing.result() if removing.done() else None
        told = explained(
            end,
            status,
            kills=kills,
            memory_bytes=self._life.memory_bytes,
            said=self._last_words(),
        )
        self._ended(told)
        try:
            await removing
        finally:
            removing.cancel()
            self._close_relay()
            if self._life.place is not None:
                self._life.place.close()

    async def _remove(self) -> int | None:
        """Until it is done; what is left when this agent ends the next one removes."""
        while True:
            try:
                return await self._blocking(lambda: self._site.containers.remove(self._name))
            except ContainerFailed as error:
                log.warning("container.left", container=self._name, why=str(error))
            await asyncio.sleep(REMOVE_AGAIN_S)

    def _last_words(self) -> str:
        """Of one that has not said hello."""
        place = self._life.place
        return "" if place is None or self._life.has_said_hello else last_line(place.output)

    def _close_relay(self) -> None:
        if self._life.relay is not None:
            self._life.relay.close()
            self._life.relay = None

    def _blocking(self, call: Callable[[], _T]) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._site.threads, call)
