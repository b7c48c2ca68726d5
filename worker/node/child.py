"""One child process, watched by its pidfd, so that nothing is ever sent to a recycled pid."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from worker.node.launcher import Exit


class Child:
    """`on_end` is called once, on the event loop, after the process ended and was reaped."""

    def __init__(self, pid: int, on_end: Callable[[Exit], None]) -> None:
        self.pid = pid
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(on_end, Exit())
            return
        self._loop.add_reader(self._pidfd, self._ended)

    def kill(self) -> None:
        """SIGKILL; may be repeated, and come too late."""
        if self._pidfd is not None:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _ended(self) -> None:
        assert self._pidfd is not None
        pidfd, self._pidfd = self._pidfd, None
        self._loop.remove_reader(pidfd)
        try:
            end = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            end = None
        os.close(pidfd)
        self._on_end(Exit() if end is None else Exit(_status(end)))


def _status(end: os.waitid_result) -> int:
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def spawn(
    command: tuple[str, ...], environment: dict[str, str], *, descriptor: int, output: str
) -> int:
    """Starts a program that finds `descriptor` as its file descriptor 3; its pid. Raises OSError.

    It reads nothing and appends what it prints to the file `output`.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=(
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, descriptor, 3),
        ),
        setpgroup=0,  # a Ctrl-C in our terminal is ours to handle
    )


def reap_zombies(names: frozenset[str]) -> None:
    """Reaps those of this process's children that have ended and carry one of these names."""
    for pid in children(names):
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def children(names: frozenset[str]) -> list[int]:
    """Those of this process's children, adopted ones included, that carry one of these names."""
    try:
        pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:  # not Linux
        return []
    return [pid for pid in map(int, pids) if _name(pid) in names]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
