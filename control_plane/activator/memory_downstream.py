"""A client in memory: a Downstream that keeps what it was sent."""

import asyncio
from collections.abc import Sequence

from control_plane.activator.call import Header


class MemoryDownstream:
    """Reads as fast as it is sent to; `ended` is done when its call has ended."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.is_finished = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_started(self) -> bool:
        return self.status != 0

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def start(self, status: int, headers: Sequence[Header]) -> None:
        assert not self.has_started, "one head"
        self.status = status
        self.headers = dict(headers)

    def send(self, data: bytes) -> None:
        assert self.has_started and not self.ended.done(), "head, body, end"
        self.parts.append(data)

    def finish(self, data: bytes = b"") -> None:
        self.send(data)
        self.is_finished = True
        self.ended.set_result(None)

    def fail(self, error: Exception) -> None:
        assert not self.ended.done(), "it ends once"
        self.ended.set_exception(error)
