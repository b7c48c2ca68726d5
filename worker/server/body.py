"""Reads a request's body within a bound."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from infra.errors import BodyTooLarge
from worker.server.in_flight import Disconnected

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = dict[bytes, bytes]


async def read_body(receive: Receive, headers: Headers, *, most_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge before it is read where Content-Length tells, else as
    soon as it is known; Disconnected when the client leaves."""
    if int(headers.get(b"content-length", b"0")) > most_bytes:
        raise _too_large(most_bytes)
    parts: list[bytes] = []
    received = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        received += len(parts[-1])
        if received > most_bytes:
            raise _too_large(most_bytes)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(most_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has more than {most_bytes} bytes", limit=most_bytes)
