"""Pulls images for programs of this machine that ask on a socket: none of them starts a Python."""

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import BoundedSemaphore, Event, Thread
from typing import Final, TextIO

import structlog
from pydantic import ValidationError

from infra.contracts.image_pull import PullFailed, PullOrder
from infra.errors import PlatformError
from snapshotter.containerd.pull_report import JsonPullReport, Report

log = structlog.get_logger()

Pull = Callable[[PullOrder, Report], None]

_MOST_AT_ONCE: Final = 16
_MOST_ORDER_BYTES: Final = 16 << 10
_ORDER_S: Final = 10.0
_PAUSE_S: Final = 0.1


class PullServer:
    """An order a connection, one line; the answer is PullLines. Whoever hangs up ends the pull
    at its next layer.
    """

    def __init__(self, path: Path, pull: Pull) -> None:
        self._path = path
        self._pull = pull
        self._room = BoundedSemaphore(_MOST_AT_ONCE)

    def start(self) -> None:
        """Answers from now on, until the process ends."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o600)  # the folder is closed to others meanwhile
        listener.listen(_MOST_AT_ONCE)
        Thread(target=self._accept, args=(listener,), name="pulls", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            self._room.acquire()
            try:
                connection, _ = listener.accept()
            except OSError as error:  # no descriptor is left, for a moment
                log.error("pull.not_accepted", error=error.strerror)
                self._room.release()
                Event().wait(_PAUSE_S)
                continue
            Thread(target=self._serve, args=(connection,), name="pull", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with (
                suppress(OSError),
                connection,
                connection.makefile("rw", errors="replace") as lines,
            ):
                connection.settimeout(_ORDER_S)
                order = lines.readline(_MOST_ORDER_BYTES)
                connection.settimeout(None)
                self._answer(order, lines)
        finally:
            self._room.release()

    def _answer(self, said: str, lines: TextIO) -> None:
        try:
            order = PullOrder.model_validate_json(said)
            self._pull(order, JsonPullReport(lines))
        except (PlatformError, ValidationError) as error:
            detail = error.detail if isinstance(error, PlatformError) else "this is no order"
            failed = PullFailed(detail=detail[:4000])
            lines.write(failed.model_dump_json() + "\n")
        except ConnectionError:  # whoever asked has gone
            raise
        except Exception:
            log.exception("pull.failed")
            failed = PullFailed(detail="the snapshotter's log has the reason")
            lines.write(failed.model_dump_json() + "\n")
