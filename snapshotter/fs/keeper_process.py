"""The keeper as a process of its own: taken over or started, and started again when it ends.

It outlives who started it, so that a restart of the snapshotter takes no file from a container.
"""

import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Final

import structlog

from infra.backoff import Backoff
from infra.errors import PlatformError, StoreUnavailable
from snapshotter.fs.control_client import ControlClient
from snapshotter.fs.handover import held_too
from snapshotter.fs.layout import Layout

log = structlog.get_logger()

_BACKOFF: Final = Backoff(first_s=0.1, most_s=10.0)
_START_TRIES: Final = 40
_TRY_S: Final = 0.5

Process = subprocess.Popen[bytes]


class KeeperProcess:
    """`command` runs a keeper until SIGTERM."""

    def __init__(self, layout: Layout, command: Sequence[str]) -> None:
        self._layout = layout
        self._command = command
        self._control = ControlClient(layout.control, deadline_s=_TRY_S)
        self._is_over = Event()
        self._lock = Lock()  # guards that no keeper is started once it is over, and the next
        self._process: Process | None = None  # the one that we started
        self._descriptor: int | None = None  # of the keeper's folder; the watch's own
        self._is_known = Event()  # set while it is known whether the keeper serves
        self._serves = False

    def serves(self) -> bool:
        """Whether layers can be mounted now; waits while a keeper is starting."""
        self._is_known.wait(_START_TRIES * _TRY_S)
        return self._serves

    def start(self, on_ready: Callable[[], None]) -> None:
        """Returns at once; `on_ready` hears each time that a keeper serves."""
        self._layout.make()
        Thread(target=self._watch, args=(on_ready,), name="keeper", daemon=True).start()

    def leave(self) -> None:
        """The keeper lives on; no other is started."""
        with self._lock:
            self._is_over.set()

    def end(self) -> None:
        """Ends it with its mounts, and returns when it has ended."""
        self.leave()
        with suppress(PlatformError, ProcessLookupError):
            if self._process is not None:
                self._process.terminate()
            elif self._is_running():
                os.kill(int(self._control.ask("keeper")), signal.SIGTERM)
            self._wait_for_end()

    def _watch(self, on_ready: Callable[[], None]) -> None:
        failures = 0
        while True:
            with self._lock:
                if self._is_over.is_set():
                    return
                self._process = None if self._is_running() else self._started()
            self._serves = self._is_ready(self._process)
            self._is_known.set()
            if self._serves:
                failures = 0
                self._hold_folder()
                log.info("keeper.ready", is_new=self._process is not None)
                try:
                    on_ready()
                except Exception:  # who watches goes on watching
                    log.exception("keeper.not_told")
            else:
                failures += 1
                self._let_go()
            self._wait_for_end()
            if not failures:
                self._is_known.clear()
            self._serves = False
            if not self._is_over.is_set():
                log.error("keeper.ended")
            self._is_over.wait(_BACKOFF.delay_s(failures) if failures else 0)

    def _started(self) -> Process:
        # a session of its own: a Ctrl-C that ends us is not meant for it
        held = () if self._descriptor is None else (self._descriptor,)
        return subprocess.Popen(
            [*self._command, *(f"--descriptor={descriptor}" for descriptor in held)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=held,
        )

    def _hold_folder(self) -> None:
        """So that containers keep their layers when the keeper is killed: the next one goes on."""
        self._let_go()
        try:
            self._descriptor = held_too(int(self._control.ask("keeper")))
        except (OSError, PlatformError) as error:
            log.warning("keeper.not_held", error=str(error))

    def _let_go(self) -> None:
        """When no keeper goes on with the folder, its reads have to fail rather than wait."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_ready(self, process: Process | None) -> bool:
        for _ in range(_START_TRIES):
            with suppress(StoreUnavailable):
                self._control.ask("list")
                return True
            if process is not None and process.poll() is not None:
                return False
        log.error("keeper.silent")
        return False

    def _is_running(self) -> bool:
        """Whether a keeper has the folder."""
        return not self._locked(fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _wait_for_end(self) -> None:
        if self._process is not None:
            self._process.wait()
        else:
            self._locked(fcntl.LOCK_SH)

    def _locked(self, operation: int) -> bool:
        """Takes the keeper's lock and gives it back; False if it is another's."""
        descriptor = os.open(self._layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True
