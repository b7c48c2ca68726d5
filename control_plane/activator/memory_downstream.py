"""A client in memory: a Downstream that keeps what it was sent."""

import asyncio
from collections.abc import Iterable

from control_plane.activator.call import Header


class MemoryDownstream:
    """Reads as fast as it is sent to, or only while `reads` is set."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.is_finished = False
        self.reads = asyncio.Event()
        self.reads.set()

    @property
    def has_started(self) -> bool:
        return self.status != 0

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        assert not self.has_started, "one head"
        self.status = status
        self.headers = dict(headers)

    async def send(self, data: bytes) -> None:
        assert self.has_started and not self.is_finished, "head, body, end"
        self.parts.append(data)
        await self.reads.wait()

    async def finish(self, data: bytes = b"") -> None:
        await self.send(data)
        self.is_finished = True
