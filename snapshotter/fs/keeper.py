"""Keeps layers readable while the process that serves them comes and goes.

The keeper owns the flat folder: its descriptor, its mount. It forks the data process, which
serves over that descriptor, and forks another when it ends; the next one has the kernel ask
again for what had no answer. A program that reads meanwhile waits, and gets its bytes.
"""

import fcntl
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Never

import structlog

from infra.backoff import Backoff
from infra.errors import Conflict
from infra.tether import die_with_parent
from snapshotter.fs import linux
from snapshotter.fs.flat_folder import abort_folder, mount_folder, unmount_all
from snapshotter.fs.fuse_wire import Feature
from snapshotter.fs.handover import take_over
from snapshotter.fs.layout import Layout

log = structlog.get_logger()

Serve = Callable[[int], None]  # what the data process does, given the descriptor

_SOUND_S = 1.0  # who lives as long did not die of its start
_BACKOFF = Backoff(first_s=0.05, most_s=0.5)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def keep(layout: Layout, serve: Serve, descriptor: int | None = None) -> int:
    """Mounts and serves until SIGTERM (returns 0) or until the folder cannot be served (1).

    Call it in a process of one thread that has imported what `serve` needs: a fork of it serves
    within milliseconds. `descriptor` is that of an earlier keeper, whose mounts are kept if they
    can be; else what it or an earlier run of the machine left mounted is detached first. Raises
    Conflict when another keeper has the folder, OSError, DependencyMissing.
    """
    if descriptor is None:  # else it is there, and a look at it waits for who serves it
        layout.make()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # the data process's too
    with _locked(layout) as lock:
        descriptor, features = _taken_over(layout, descriptor) or _mounted(layout)
        try:
            with _ended_by_signals():
                _serve_for_ever(layout, serve, descriptor, lock, features)
            return 1
        except _Ended:
            return 0
        finally:
            unmount_all(layout)
            os.close(descriptor)


def _taken_over(layout: Layout, descriptor: int | None) -> tuple[int, Feature] | None:
    if descriptor is None:
        return None
    features = take_over(layout, descriptor)
    if features is None:
        os.close(descriptor)  # who reads there fails, once nobody else has it
        return None
    log.info("keeper.took_over")
    return descriptor, features


def _mounted(layout: Layout) -> tuple[int, Feature]:
    for stale in unmount_all(layout):
        log.warning("mount.stale", mount=str(stale.point), kind=stale.kind)
    layout.make()
    return mount_folder(layout.files)


def _serve_for_ever(
    layout: Layout, serve: Serve, descriptor: int, lock: int, features: Feature
) -> None:
    """Returns when there is nothing left to serve."""
    failures = 0
    while True:
        started = time.monotonic()
        status = _forked(layout, serve, descriptor, lock)
        lived_s = time.monotonic() - started
        if not any(mount.point == layout.files for mount in linux.mounts()):
            log.error("keeper.unmounted", folder=str(layout.files))
            return
        log.warning("data_process.ended", status=status, seconds=round(lived_s, 1))
        if not features & Feature.RESEND:
            # what it had read and not answered would wait for ever
            abort_folder(layout.files)
            return
        failures = 0 if lived_s > _SOUND_S else failures + 1
        if failures:
            Event().wait(_BACKOFF.delay_s(failures))


def _forked(layout: Layout, serve: Serve, descriptor: int, lock: int) -> int:
    """The exit status of a data process, which ends when the keeper does; negative: a signal."""
    keeper = os.getpid()
    process = os.fork()
    if not process:
        _be_data_process(layout, serve, descriptor, lock, keeper)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except _Ended:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise


def _be_data_process(
    layout: Layout, serve: Serve, descriptor: int, lock: int, keeper: int
) -> Never:
    status = 1
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        die_with_parent()
        if os.getppid() == keeper:  # else it died before we were tied to it
            os.close(lock)
            _wait_for_the_last(layout)
            serve(descriptor)
            status = 0
    except Exception:
        log.exception("data_process.failed")
    finally:
        os._exit(status)  # its threads may wait for an origin


def _wait_for_the_last(layout: Layout) -> None:
    """A data process that dies may take requests until it is gone: they are asked for again then.

    One of a keeper that was killed is nobody's child here, but holds this lock, as we do from now.
    """
    ours = os.open(layout.data_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(ours, fcntl.LOCK_EX)


class _Ended(BaseException):
    """A signal asked the keeper to end."""


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise _Ended

    for number in _SIGNALS:
        signal.signal(number, end)
    yield


@contextmanager
def _locked(layout: Layout) -> Iterator[int]:
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another keeper serves {layout.root}") from None
        yield descriptor
    finally:
        os.close(descriptor)
