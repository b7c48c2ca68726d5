"""Pulls images for programs of this machine that ask on a socket: none of them starts a Python."""

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

import structlog
from pydantic import ValidationError

from infra.contracts.image_pull import PullFailed, PullOrder
from infra.errors import PlatformError
from infra.unix_server import UnixServer
from snapshotter.containerd.pull_report import JsonPullReport, Report

log = structlog.get_logger()

Pull = Callable[[PullOrder, Report], None]

_MOST_AT_ONCE: Final = 16
_MOST_ORDER_BYTES: Final = 16 << 10
_ORDER_S: Final = 10.0


class PullServer:
    """An order a connection, one line; the answer is PullLines. Whoever hangs up ends the pull
    at its next layer.
    """

    def __init__(self, path: Path, pull: Pull) -> None:
        self._path = path
        self._pull = pull

    def start(self) -> None:
        """Answers from now on, until the process ends."""
        UnixServer(self._path, self._serve, name="pulls", most=_MOST_AT_ONCE).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection.makefile("rw", errors="replace") as lines:
            connection.settimeout(_ORDER_S)
            order = lines.readline(_MOST_ORDER_BYTES)
            connection.settimeout(None)
            self._answer(order, lines)

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
