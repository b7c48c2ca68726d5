"""Reads request bodies, each bounded and all of them together."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from infra.errors import BodyTooLarge, QueueFull

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_ALL_BYTES: Final = 1 << 30


class ClientGone(Exception):
    """The client left before its request was whole."""


class Intake:
    """Counts the bytes of all bodies that are in memory, from their first byte to their end."""

    def __init__(self, *, most_bytes: int = _ALL_BYTES) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """Makes room for a part of a body; raises QueueFull where there is none."""
        if self.held_bytes + size > self._most_bytes:
            raise QueueFull(
                f"the platform holds {self.held_bytes} bytes of requests already",
                hint="try again later",
                limit_bytes=self._most_bytes,
                retry_after_s=1,
            )
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        """A body, or the part of one that came, is no longer needed."""
        assert size <= self.held_bytes, "given back twice"
        self.held_bytes -= size


class Body:
    """One request's body on its way in; `received` bytes of it are counted as held."""

    __slots__ = ("_intake", "_parts", "declared", "received")

    def __init__(self, intake: Intake, content_length: bytes | None) -> None:
        self._intake = intake
        self._parts: list[bytes] = []
        self.declared = length_of(content_length)
        self.received = 0

    def expect(self, *, most_bytes: int) -> None:
        """Raises BodyTooLarge before anything is read where Content-Length tells."""
        if self.declared is not None and self.declared > most_bytes:
            raise _too_large(most_bytes)

    def add(self, part: bytes, *, most_bytes: int) -> None:
        """Keeps a part; raises BodyTooLarge, QueueFull."""
        if self.received + len(part) > most_bytes:
            raise _too_large(most_bytes)
        self._intake.take(len(part))
        self.received += len(part)
        self._parts.append(part)

    def whole(self) -> bytes:
        """All of it; it stays counted until it is let go."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def let_go(self) -> None:
        """The request is over; may be repeated."""
        self._parts = []
        received, self.received = self.received, 0
        self._intake.give_back(received)


async def read_body(receive: Receive, body: Body, *, most_bytes: int) -> bytes:
    """The whole body as an ASGI server hands it out; raises what Body does, and ClientGone."""
    body.expect(most_bytes=most_bytes)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body.add(message.get("body", b""), most_bytes=most_bytes)
        if not message.get("more_body", False):
            return body.whole()


def _too_large(most_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has more than {most_bytes} bytes",
        hint="limits.max_body_bytes of the model sets the limit",
        limit=most_bytes,
    )


def length_of(value: bytes | None) -> int | None:
    """What Content-Length says; the server has refused what is not a number."""
    return int(value) if value is not None and value.isdigit() and len(value) < 19 else None
