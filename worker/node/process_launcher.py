"""Workers as processes: forked by the zygote, or programs of their own; nothing outlives us."""

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from infra.contracts.stage import Rung
from infra.contracts.worker_link import FromWorker, Hello, ToWorker
from infra.supervise import TaskSet
from worker.node.child import Child, reap_zombies, spawn
from worker.node.launcher import Exit, Listener
from worker.node.logs import last_line
from worker.node.orphans import Orphans
from worker.node.plan import Origin, WorkerId
from worker.node.worker_link import WorkerLink
from worker.node.zygote_process import ZygoteProcess

log = structlog.get_logger()

LAST_WORDS_S = 0.2  # between the end of a worker and the end of its link, whichever is first
LOST_PID_S = 2.0  # for the pid of a forked worker whose link has closed
CLOSE_S = 5.0  # for killed processes to be gone
# What a zygote that dies in the middle of a fork leaves behind carries one of these names.
STRAYS = frozenset({"fl-zygote", "fl-standby"})


@dataclass(frozen=True, slots=True)
class Programs:
    """How the two programs are started; what both are told is appended: `--link`, `--cache` …"""

    zygote: tuple[str, ...]
    replica: tuple[str, ...]
    environment: dict[str, str]
    cache_dir: Path
    zygote_log: Path
    weights_socket: Path | None = None
    plain_http: frozenset[str] = frozenset()

    def argv(self, program: tuple[str, ...]) -> tuple[str, ...]:
        """The whole argument vector of one of them."""
        store = [] if self.weights_socket is None else ["--store", str(self.weights_socket)]
        cache = ["--cache", str(self.cache_dir)]
        plain = [text for host in sorted(self.plain_http) for text in ("--plain-http", host)]
        return (*program, "--link", "3", "--parent", str(os.getpid()), *cache, *store, *plain)


@dataclass(slots=True)
class _Process:
    """One worker. Its end is told when the process was reaped and its link is read out.

    `ranks` are the further processes that it left behind: they hold GPUs until they are gone.
    """

    link: WorkerLink
    zygote: ZygoteProcess | None = None
    child: Child | None = None
    end: Exit | None = None
    is_link_closed: bool = False
    is_killed: bool = False
    ranks: set[int] = field(default_factory=set)


class ProcessLauncher:
    """See the port. The agent must be a subreaper: forked workers become its children."""

    runs_images = False

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._listener: Listener | None = None
        self._processes: dict[WorkerId, _Process] = {}
        self._zygote: ZygoteProcess | None = None
        self._ending: set[Child | ZygoteProcess] = set()  # nobody else waits for these
        self._orphans = Orphans(self._rank_gone)
        self._tasks = TaskSet()
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def pin(self, indexes: Mapping[str, str]) -> None:
        """Processes run no image."""

    def climbs_from(self, origin: Origin, *, image: str | None = None) -> tuple[Rung, str]:
        return Rung.NODE, origin.value

    def start_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._programs.zygote_log.unlink(missing_ok=True)
        try:
            pid = self._spawn(self._programs.zygote, theirs, self._programs.zygote_log)
        except OSError as error:
            ours.close()
            self._loop.call_soon(self._heard.on_zygote_exit, Exit(why=f"spawn: {error}"))
        else:
            self._zygote = ZygoteProcess(pid, ours, self)
        finally:
            theirs.close()

    def stop_zygote(self) -> None:
        if self._zygote is not None:
            self._zygote.kill()
            self._ending.add(self._zygote)
            self._zygote = None

    def fork(self, worker_id: WorkerId, *, ranks: int, image: str | None = None) -> None:
        ours, theirs = socket.socketpair()
        process = self._follow(worker_id, ours)
        process.zygote = self._zygote
        if self._zygote is None:
            theirs.close()
            self._loop.call_soon(self._finish, worker_id, Exit(why="there is no fork server"))
        else:
            self._zygote.fork(worker_id, theirs, ranks=ranks)

    def spawn(
        self, worker_id: WorkerId, log_path: Path, *, ranks: int, image: str | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        process = self._follow(worker_id, ours)
        program = (*self._programs.replica, "--ranks", str(ranks))
        try:
            pid = self._spawn(program, theirs, log_path)
        except OSError as error:
            self._loop.call_soon(self._finish, worker_id, Exit(why=f"spawn: {error}"))
        else:
            process.child = Child(pid, lambda end: self._ended(worker_id, end))
        finally:
            theirs.close()

    def send(self, worker_id: WorkerId, message: ToWorker) -> None:
        process = self._processes.get(worker_id)
        if process is not None:
            process.link.send(message)

    def kill(self, worker_id: WorkerId) -> None:
        process = self._processes.get(worker_id)
        if process is None:
            return
        process.is_killed = True
        if process.child is not None:
            process.child.kill()
        else:
            process.link.close()  # the end of a worker whose pid we do not know yet

    async def close(self) -> None:
        for worker_id in tuple(self._processes):
            self.kill(worker_id)
        self.stop_zygote()
        try:
            async with asyncio.timeout(CLOSE_S):
                while self._processes or self._ending:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            log.error("processes.left", workers=len(self._processes), others=len(self._ending))
        await self._tasks.close()

    # One worker --------------------------------------------------------------------------------

    def _spawn(self, program: tuple[str, ...], link: socket.socket, output: Path) -> int:
        return spawn(
            self._programs.argv(program),
            self._programs.environment,
            descriptor=link.fileno(),
            output=str(output),
        )

    def _follow(self, worker_id: WorkerId, ours: socket.socket) -> _Process:
        link = WorkerLink(
            lambda message: self._said(worker_id, message), lambda: self._link_closed(worker_id)
        )
        self._processes[worker_id] = process = _Process(link)
        ours.setblocking(False)
        connecting = self._loop.create_unix_connection(lambda: link, sock=ours)
        self._tasks.start(connecting, name=f"worker-{worker_id}.link")
        return process

    def _said(self, worker_id: WorkerId, message: FromWorker) -> None:
        if isinstance(message, Hello):
            self._adopt(worker_id, message.pid)
        self._heard.on_message(worker_id, message)

    def _adopt(self, worker_id: WorkerId, pid: int) -> None:
        """A forked worker's pid is known: from the zygote, from itself, whichever is first."""
        process = self._processes.get(worker_id)
        if process is None:
            self._end(pid)  # it was given up while it was being forked
        elif process.child is None:
            process.child = Child(pid, lambda end: self._ended(worker_id, end))
            if process.is_killed or process.is_link_closed:
                process.child.kill()

    def _end(self, pid: int) -> None:
        child = Child(pid, lambda _: self._is_gone(child))
        self._ending.add(child)
        child.kill()

    def _is_gone(self, who: Child | ZygoteProcess) -> None:
        self._ending.discard(who)
        self._gone.set()

    def _link_closed(self, worker_id: WorkerId) -> None:
        process = self._processes.get(worker_id)
        if process is None:
            return
        process.is_link_closed = True
        if process.end is not None:
            self._finish_without_ranks(worker_id)
        elif process.child is not None:
            self._loop.call_later(LAST_WORDS_S, process.child.kill)  # of no use without its link
        else:
            self._loop.call_later(LOST_PID_S, self._finish_without_pid, worker_id)

    def _ended(self, worker_id: WorkerId, end: Exit) -> None:
        process = self._processes.get(worker_id)
        if process is None:
            return
        process.end = end
        process.ranks = self._orphans.adopt()
        if process.is_link_closed:
            self._finish_without_ranks(worker_id)
        else:
            self._loop.call_later(LAST_WORDS_S, self._close_link, worker_id)

    def _close_link(self, worker_id: WorkerId) -> None:
        """Its last words have been heard, or there are none."""
        process = self._processes.get(worker_id)
        if process is not None:
            process.is_link_closed = True
            self._finish_without_ranks(worker_id)

    def _rank_gone(self, pid: int) -> None:
        for worker_id, process in tuple(self._processes.items()):
            if pid in process.ranks:
                process.ranks.discard(pid)
                self._finish_without_ranks(worker_id)

    def _finish_without_ranks(self, worker_id: WorkerId) -> None:
        process = self._processes.get(worker_id)
        if process is None or process.end is None:
            return
        if process.is_link_closed and not process.ranks:
            self._finish(worker_id, process.end)

    def _finish_without_pid(self, worker_id: WorkerId) -> None:
        process = self._processes.get(worker_id)
        if process is not None and process.child is None:
            self._finish(worker_id, Exit(why="it ended before it said hello"))

    def _finish(self, worker_id: WorkerId, end: Exit) -> None:
        """Nothing is left of the worker: tells the listener, once."""
        process = self._processes.pop(worker_id, None)
        if process is None:
            return
        process.link.close()
        self._gone.set()
        self._heard.on_exit(worker_id, end)

    @property
    def _heard(self) -> Listener:
        assert self._listener is not None, "listen() comes first"
        return self._listener

    # What the zygote says (its listener) ---------------------------------------------------------

    def on_up(self, zygote: ZygoteProcess) -> None:
        if zygote is self._zygote:
            self._heard.on_zygote_up()

    def on_forked(self, worker_id: WorkerId, pid: int) -> None:
        self._adopt(worker_id, pid)

    def on_fork_failed(self, worker_id: WorkerId, why: str) -> None:
        self._finish(worker_id, Exit(why=why))

    def on_end(self, zygote: ZygoteProcess, end: Exit) -> None:
        """Workers it had forked live on; those it was about to fork end here."""
        self._is_gone(zygote)
        for later_s in (0.0, 1.0, 5.0):
            self._loop.call_later(later_s, reap_zombies, STRAYS)
        if zygote is self._zygote:
            self._zygote = None
            log.warning("zygote.ended", last_line=last_line(self._programs.zygote_log))
            self._heard.on_zygote_exit(end)
        for worker_id, process in tuple(self._processes.items()):
            if process.zygote is zygote and process.child is None:
                self._finish(worker_id, Exit(why=f"the fork server died ({end})"))
