"""How long a 202 takes: requests on kept connections, straight over sockets."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

BODY = b'{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}'
_ACCEPTED = b"HTTP/1.1 202"


@dataclass(frozen=True, slots=True)
class Accepts:
    """Seconds of each accepted request, ascending, and of all of them together."""

    each_s: Sequence[float]
    total_s: float

    def quantile(self, share: float) -> float:
        return self.each_s[min(len(self.each_s) - 1, int(share * len(self.each_s)))]


async def measure(host: str, port: int, *, concurrency: int, requests: int) -> Accepts:
    """Sends so many requests, each connection the next one when it has its 202."""
    head = (
        f"POST /v1/models/chat/invoke HTTP/1.1\r\nhost: {host}\r\nprefer: respond-async\r\n"
        f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    ).encode()
    loop, numbers, seconds = asyncio.get_running_loop(), iter(range(requests)), list[float]()
    started = time.perf_counter()
    clients = []
    for _ in range(concurrency):
        _, client = await loop.create_connection(
            lambda: _Client(head + BODY, numbers, seconds), host, port
        )
        clients.append(client)
    for client in clients:
        await client.ended
    return Accepts(sorted(seconds), time.perf_counter() - started)


class _Client(asyncio.Protocol):
    """Callbacks alone: what it costs is taken from what is measured, on a machine that is full."""

    def __init__(self, request: bytes, numbers: Iterator[int], seconds: list[float]) -> None:
        self._request = request
        self._numbers = numbers
        self._seconds = seconds
        self._received = b""
        self._asked_at = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        if next(self._numbers, None) is None:
            self.ended.set_result(None)
            self._transport.close()
            return
        self._asked_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not length.isdigit() or len(body) < int(length):
            return
        self._seconds.append(time.perf_counter() - self._asked_at)
        if not head.startswith(_ACCEPTED):
            self.ended.set_exception(RuntimeError(self._received.decode(errors="replace")))
            self._transport.close()
            return
        self._received = b""
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionError("closed before it had answered"))
