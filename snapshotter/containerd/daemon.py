"""The snapshotter of a node from start to stop."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Final

import structlog

from infra.errors import Conflict
from snapshotter.containerd.pull_server import PullServer
from snapshotter.containerd.server import SnapshotsServer
from snapshotter.containerd.snapshotter import Snapshotter
from snapshotter.fs.keeper_process import KeeperProcess

log = structlog.get_logger()

_STOP_S: Final = 10.0


class Daemon:
    """Answers containerd until SIGTERM, whether or not a registry, or the keeper, is there.

    Layers stay mounted when it ends, as containers that run need them; a keeper that keeps nothing
    ends with it.
    """

    def __init__(
        self,
        snapshotter: Snapshotter,
        server: SnapshotsServer,
        pulls: PullServer,
        keeper: KeeperProcess,
    ) -> None:
        self._snapshotter = snapshotter
        self._server = server
        self._pulls = pulls
        self._keeper = keeper
        self._is_asked_to_end = Event()

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._is_asked_to_end.set())
        self._snapshotter.clean_up_after_crash()
        self._keeper.start(self._snapshotter.mount_layers)
        self._server.start()
        self._pulls.start()
        log.info("snapshotter.ready")
        self._is_asked_to_end.wait()
        self._server.stop(grace_s=_STOP_S)
        if self._snapshotter.has_layers():
            self._keeper.leave()
        else:
            self._keeper.end()
        log.info("snapshotter.ended")

    @staticmethod
    @contextmanager
    def lock(state_dir: Path) -> Iterator[None]:
        """The folder is this process's. Raises Conflict when it is another's."""
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"another snapshotter serves {state_dir}") from None
            yield
        finally:
            os.close(descriptor)
