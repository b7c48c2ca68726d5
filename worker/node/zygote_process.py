"""The fork server as the agent knows it: a child process and the control socket to it."""

import asyncio
import socket
from typing import Protocol

import structlog

from infra.contracts.worker_link import Fork, Forked, ForkFailed, FromZygote, ZygoteUp, from_zygote
from worker.node.child import Child
from worker.node.launcher import Exit
from worker.node.plan import WorkerId

log = structlog.get_logger()

LONGEST_MESSAGE = 4096  # bytes
LAST_WORDS_S = 0.2  # between the end of its control socket and its own


class ZygoteListener(Protocol):
    """Hears of fork servers, never from inside a call to one."""

    def on_up(self, zygote: "ZygoteProcess") -> None: ...
    def on_forked(self, worker_id: WorkerId, pid: int) -> None: ...
    def on_fork_failed(self, worker_id: WorkerId, why: str) -> None: ...
    def on_end(self, zygote: "ZygoteProcess", end: Exit) -> None: ...


class ZygoteProcess:
    """Takes over a started fork server: its pid and our end of its control socket."""

    def __init__(self, pid: int, control: socket.socket, listener: ZygoteListener) -> None:
        self._listener = listener
        self._is_up = False
        self._is_killed = False
        self._waiting: list[tuple[Fork, socket.socket]] = []
        self._control: socket.socket | None = control
        self._loop = asyncio.get_running_loop()
        self._child = Child(pid, self._ended)
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self._readable)

    def fork(self, worker_id: WorkerId, link: socket.socket, *, ranks: int) -> None:
        """Asks for a worker that owns `link`, at once or as soon as the fork server is up."""
        asked = Fork(worker=worker_id, ranks=ranks)
        if self._is_up:
            self._ask(asked, link)
        else:
            self._waiting.append((asked, link))

    def kill(self) -> None:
        self._is_killed = True
        self._child.kill()

    def _ask(self, asked: Fork, link: socket.socket) -> None:
        message = asked.model_dump_json().encode()
        try:
            if self._control is not None:
                socket.send_fds(self._control, [message], [link.fileno()])
        except OSError as error:
            self._loop.call_soon(self._listener.on_fork_failed, asked.worker, str(error))
        finally:
            link.close()

    def _readable(self) -> None:
        assert self._control is not None
        try:
            message = self._control.recv(LONGEST_MESSAGE)
            if not message:
                raise ConnectionResetError("the fork server closed its control socket")
            self._said(from_zygote.validate_json(message))
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            if not self._is_killed:
                log.warning("zygote.broken", why=str(error))
            self._close()
            self._loop.call_later(LAST_WORDS_S, self.kill)  # unless it is ending by itself

    def _said(self, message: FromZygote) -> None:
        match message:
            case ZygoteUp():
                self._is_up = True
                self._listener.on_up(self)
                for asked, link in self._waiting:
                    self._ask(asked, link)
                self._waiting.clear()
            case Forked(worker=worker_id, pid=pid):
                self._listener.on_forked(worker_id, pid)
            case ForkFailed(worker=worker_id, detail=detail):
                self._listener.on_fork_failed(worker_id, detail)

    def _ended(self, end: Exit) -> None:
        self._close()
        self._listener.on_end(self, end)

    def _close(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        for _, link in self._waiting:
            link.close()
        self._waiting.clear()
