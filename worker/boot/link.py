"""The worker's end of its link to the node agent: JSON lines on an inherited socket."""

import asyncio
import socket

from infra.contracts.worker_link import FromWorker, ToWorker, to_worker

LONGEST_LINE = 16 << 20  # bytes; a Start lists the files of its source


class AgentLink:
    """Belongs to the event loop. The agent's end closes when the agent dies, and only then."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, descriptor: int) -> "AgentLink":
        """Takes the inherited socket over."""
        link = socket.socket(fileno=descriptor)
        link.setblocking(False)
        link.set_inheritable(False)
        return cls(*await asyncio.open_unix_connection(sock=link, limit=LONGEST_LINE))

    def tell(self, message: FromWorker) -> None:
        """Writes at once."""
        self._writer.write(message.model_dump_json().encode() + b"\n")

    async def hear(self) -> ToWorker | None:
        """The agent's next word; None once the agent is gone."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        return to_worker.validate_json(line) if line.endswith(b"\n") else None

    async def flush(self) -> None:
        """Waits until everything told has left this process."""
        self._writer.transport.set_write_buffer_limits(high=0)
        await self._writer.drain()
