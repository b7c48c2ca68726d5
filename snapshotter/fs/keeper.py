"""Keeps layers readable while the process that serves them comes and goes.

The keeper owns the flat folder: its descriptor, its mount. It starts the data process, which
serves over that descriptor, and starts another when it ends; the next one has the kernel ask
again for what had no answer. A program that reads meanwhile waits, and gets its bytes.
"""

import fcntl
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from types import FrameType

import structlog

from infra.backoff import Backoff
from infra.errors import Conflict
from infra.tether import tethered
from snapshotter.fs import linux
from snapshotter.fs.flat_folder import abort_folder, mount_folder, unmount_all
from snapshotter.fs.fuse_wire import Feature
from snapshotter.fs.layout import Layout

log = structlog.get_logger()

Command = Callable[[int], Sequence[str]]  # the data process that serves on that descriptor

_SOUND_S = 1.0  # who lives as long did not die of its start
_BACKOFF = Backoff(first_s=0.05, most_s=1.0)


def keep(layout: Layout, command: Command) -> int:
    """Mounts and serves until SIGTERM (returns 0) or until the folder cannot be served (1).

    What an earlier keeper or an earlier run of the machine left mounted is detached first.
    Raises Conflict when another keeper has the folder, OSError, DependencyMissing.
    """
    layout.make()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # the data process's too
    with _locked(layout):
        for stale in unmount_all(layout):
            log.warning("mount.stale", mount=str(stale.point), kind=stale.kind)
        layout.make()
        descriptor, features = mount_folder(layout.files)
        try:
            with _ended_by(signal.SIGTERM, signal.SIGINT):
                _serve_for_ever(layout, command, descriptor, features)
            return 1
        except _Ended:
            return 0
        finally:
            unmount_all(layout)
            os.close(descriptor)


def _serve_for_ever(layout: Layout, command: Command, descriptor: int, features: Feature) -> None:
    """Returns when there is nothing left to serve."""
    failures = 0
    while True:
        started = time.monotonic()
        status = _run(command(descriptor), descriptor)
        lived_s = time.monotonic() - started
        if not any(mount.point == layout.files for mount in linux.mounts()):
            log.error("keeper.unmounted", folder=str(layout.files))
            return
        log.warning("data_process.ended", status=status, seconds=round(lived_s, 1))
        if not features & Feature.RESEND:
            # what it had read and not answered would wait for ever
            abort_folder(layout.files)
            return
        failures = 1 if lived_s > _SOUND_S else failures + 1
        if failures > 1:
            Event().wait(_BACKOFF.delay_s(failures - 1))


def _run(command: Sequence[str], descriptor: int) -> int:
    """The exit status of the command, which ends when the keeper does."""
    process = subprocess.Popen(tethered(*command), pass_fds=(descriptor,))
    try:
        return process.wait()
    finally:
        process.kill()
        process.wait()


class _Ended(BaseException):
    """A signal asked the keeper to end."""


@contextmanager
def _ended_by(*signals: signal.Signals) -> Iterator[None]:
    def end(_signal: int, _frame: FrameType | None) -> None:
        for signal_number in signals:
            signal.signal(signal_number, signal.SIG_IGN)
        raise _Ended

    for signal_number in signals:
        signal.signal(signal_number, end)
    yield


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another keeper serves {layout.root}") from None
        yield
    finally:
        os.close(descriptor)
