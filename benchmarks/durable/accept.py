"""How long a 202 takes: requests on kept connections, straight over sockets."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

BODY = b'{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}'


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
    numbers = iter(range(requests))
    seconds: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for _ in numbers:
            started = time.perf_counter()
            writer.write(head + BODY)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            seconds.append(time.perf_counter() - started)
            if not answer.startswith(b"HTTP/1.1 202"):
                raise SystemExit(answer.decode())
        writer.close()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    return Accepts(sorted(seconds), time.perf_counter() - started)
