"""Requests as a closed loop sends them, over connections that stay open."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import orjson

_WHOLE, _STREAM = (
    orjson.dumps(
        {
            "model": "chat",
            "messages": [{"role": "user", "content": "How many cores are enough for a gateway?"}],
            "max_tokens": 100,
            "temperature": 0,
            "stream": is_streaming,
        }
    )
    for is_streaming in (False, True)
)
_LENGTH = b"content-length: "


def request(port: int, key: str, *, is_streaming: bool = False, model: str = "chat") -> bytes:
    """The bytes of one chat completion."""
    body = (_STREAM if is_streaming else _WHOLE).replace(b'"chat"', b'"%s"' % model.encode())
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


@dataclass(eq=False)
class Seen:
    """What a run brought: seconds of every answer, how many were not 200, events of streams."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    events: int = 0
    first_failure: bytes = b""
    last_at: float = 0.0

    @property
    def answered(self) -> int:
        return len(self.seconds)

    def quantile(self, share: float) -> float:
        """Seconds that this share of the answers took at most."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection(asyncio.Protocol):
    """Sends its request again as soon as it is answered, `rounds` times or until `until`."""

    def __init__(self, sent: bytes, seen: Seen, *, rounds: int, until: float) -> None:
        self._sent = sent
        self._seen = seen
        self._rounds = rounds
        self._until = until
        self._data = b""
        self.is_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, error: Exception | None) -> None:
        if not self.is_done.done():
            self._seen.failed += 1
            self._seen.first_failure = self._seen.first_failure or b"the connection was cut"
            self.is_done.set_result(None)

    def go(self) -> None:
        """Sends one request."""
        self._started = time.perf_counter()
        self._transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if not _is_whole(self._data):
            return
        whole, self._data = self._data, b""
        seen, now = self._seen, time.perf_counter()
        seen.events += whole.count(b"data: {")
        seen.last_at = now
        if whole.startswith(b"HTTP/1.1 200"):
            seen.seconds.append(now - self._started)
        else:
            seen.failed += 1
            seen.first_failure = seen.first_failure or whole
        self._rounds -= 1
        if self._rounds > 0 and now < self._until:
            self.go()
        else:
            self.is_done.set_result(None)
            self._transport.close()


def _is_whole(data: bytes) -> bool:
    """An answer has its length, or ends with the empty chunk."""
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    _, is_there, after = data[:head_end].lower().partition(_LENGTH)
    if not is_there:
        return data.endswith(b"0\r\n\r\n") and len(data) > head_end + 4
    return len(data) >= head_end + 4 + int(after.partition(b"\r\n")[0])


async def run(
    port: int, sent: bytes, *, connections: int, rounds: int = 1 << 60, seconds: float = 1e9
) -> Seen:
    """Opens the connections, then drives all of them; returns when the last one is done."""
    loop, seen = asyncio.get_running_loop(), Seen()
    until = time.perf_counter() + seconds
    opened = []
    for _ in range(connections):
        _, connection = await loop.create_connection(
            lambda: Connection(sent, seen, rounds=rounds, until=until), "127.0.0.1", port
        )
        opened.append(connection)
    for connection in opened:
        connection.go()
    await asyncio.gather(*(connection.is_done for connection in opened))
    return seen
