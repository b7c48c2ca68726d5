"""The fork server: one thread, everything imported, a worker for every word of the agent."""

import gc
import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel

from infra.contracts.worker_link import Fork, Forked, ForkFailed, ZygoteUp
from infra.tether import die_with_parent
from worker.boot.process import leave, name_process

LONGEST_MESSAGE = 4096  # bytes

Become = Callable[[int, int], NoReturn]


class NotForkable(Exception):
    """Something imported has started a thread: a fork would copy its locks and not the thread."""


def run_zygote(descriptor: int, *, preload: Callable[[], None], become: Become) -> NoReturn:
    """Serves forks on the inherited socket until the agent closes it.

    `become` turns a child into a worker that owns this descriptor and has so many ranks.
    """
    control = socket.socket(fileno=descriptor)
    preload()
    if (threads := _threads()) > 1:
        raise NotForkable(f"{threads} threads run after the imports")
    gc.collect()
    gc.freeze()  # the garbage collector would copy every shared page it looks at
    _say(control, ZygoteUp())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 1)
        if not message or not descriptors:
            leave(0)
        asked = Fork.model_validate_json(message)
        try:
            pid = _fork(control, partial(become, descriptors[0], asked.ranks))
        except OSError as error:
            _say(control, ForkFailed(worker=asked.worker, detail=f"fork: {error.strerror}"))
        else:
            _say(control, Forked(worker=asked.worker, pid=pid))
        finally:
            os.close(descriptors[0])


def _fork(control: socket.socket, become: Callable[[], NoReturn]) -> int:
    """Forks twice, so that the worker's parent ends and the agent, its subreaper, adopts it."""
    pid_read, pid_write = os.pipe()
    try:
        middle = os.fork()
        if middle == 0:
            _hand_over(control, become, pid_write)
        os.waitpid(middle, 0)
        os.close(pid_write)
        pid_write = -1
        answer = os.read(pid_read, 16)
    finally:
        os.close(pid_read)
        if pid_write >= 0:
            os.close(pid_write)
    if not answer:
        raise OSError(11, "the second fork failed")
    return int(answer)


def _hand_over(control: socket.socket, become: Callable[[], NoReturn], pid_write: int) -> NoReturn:
    """In the first child: forks the worker, says its pid, and ends."""
    middle = os.getpid()
    try:
        worker = os.fork()
    except OSError:
        os._exit(1)
    if worker:
        os.write(pid_write, str(worker).encode())
        os._exit(0)
    try:
        os.close(pid_write)
        control.close()
        _be_adopted(middle)
        become()
    except BaseException:
        traceback.print_exc()
        leave(1)


def _be_adopted(middle: int) -> None:
    while os.getppid() == middle:
        os.sched_yield()
    die_with_parent()  # of the adopting agent; had it ended, the link would be closed already
    name_process("fl-standby")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _threads() -> int:
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return 1


def _say(control: socket.socket, message: BaseModel) -> None:
    control.send(message.model_dump_json().encode())
