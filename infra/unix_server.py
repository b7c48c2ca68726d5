"""A unix socket of which only its owner may ask, with a thread for each connection."""

import socket
from collections.abc import Callable
from pathlib import Path
from threading import BoundedSemaphore, Event, Thread

import structlog

log = structlog.get_logger()

Serve = Callable[[socket.socket], None]

_PAUSE_S = 0.1


class UnixServer:
    """`serve` has the connection to itself and need not close it; more than `most` wait."""

    def __init__(self, path: Path, serve: Serve, *, name: str, most: int) -> None:
        """Listens; what was at the path goes. Raises OSError."""
        self._serve = serve
        self._name = name
        self._room = BoundedSemaphore(most)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)  # the folder is closed to others meanwhile
        self._listener.listen(most)

    def start(self) -> None:
        """Answers from now on, until the process ends."""
        Thread(target=self._accept, name=self._name, daemon=True).start()

    def _accept(self) -> None:
        while True:
            self._room.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError as error:  # no descriptor is left, for a moment
                log.error("socket.not_accepted", socket=self._name, error=error.strerror)
                self._room.release()
                Event().wait(_PAUSE_S)
                continue
            Thread(target=self._serve_one, args=(connection,), name=self._name, daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._serve(connection)
        finally:
            self._room.release()
