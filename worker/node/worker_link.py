"""The agent's end of a worker's link: JSON lines on a socket pair."""

import asyncio
from collections.abc import Callable
from typing import cast

import structlog
from pydantic import ValidationError

from infra.contracts.worker_link import FromWorker, ToWorker, from_worker

log = structlog.get_logger()

LONGEST_LINE = 1 << 20  # bytes


class WorkerLink(asyncio.Protocol):
    """`on_message` for each line, then `on_close` once; a worker that talks nonsense is cut off."""

    def __init__(
        self, on_message: Callable[[FromWorker], None], on_close: Callable[[], None]
    ) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._transport: asyncio.Transport | None = None
        self._is_closed = False
        self._rest = b""

    def send(self, message: ToWorker) -> None:
        """Writes at once; lost where the worker is gone."""
        if self._transport is not None and not self._is_closed:
            self._transport.write(message.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """The worker, if it lives, sees its agent gone and ends."""
        self._is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            if len(self._rest) > LONGEST_LINE:
                raise ValueError(f"a line of more than {LONGEST_LINE} bytes")
            for line in lines:
                if not self._is_closed:
                    self._on_message(from_worker.validate_json(line))
        except (ValueError, ValidationError) as error:
            log.error("worker.nonsense", why=str(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._on_close()
