"""Reads request bodies, each bounded and all of them together."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from infra.errors import BodyTooLarge, QueueFull

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_ALL_BYTES = 1 << 30


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


class IncomingBody:
    """One request's body on its way in; `received` bytes of it are counted as held."""

    def __init__(
        self, receive: Receive, intake: Intake, content_length: bytes | None, *, most_bytes: int
    ) -> None:
        self._receive = receive
        self._intake = intake
        self._declared = _length(content_length)
        self._most_bytes = most_bytes
        self.received = 0
        self.is_whole = False

    @property
    def is_small(self) -> bool:
        """It says that it is short enough to be read although nobody needs it."""
        return self._declared is not None and self._declared <= 64 << 10

    def bound(self, most_bytes: int) -> None:
        """It is known now whom the body is for and how large it may be."""
        self._most_bytes = most_bytes

    async def read(self) -> bytes:
        """The whole body.

        Raises BodyTooLarge before anything is read where Content-Length tells, else as soon as it
        is known; QueueFull; ClientGone.
        """
        if self._declared is not None and self._declared > self._most_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        while not self.is_whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            self.is_whole = not message.get("more_body", False)
            if self.received + len(part) > self._most_bytes:
                raise self._too_large()
            self._intake.take(len(part))
            self.received += len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def let_go(self) -> None:
        """The request is over."""
        received, self.received = self.received, 0
        self._intake.give_back(received)

    async def discard(self) -> None:
        """Reads what is left without keeping it; returns at its end, or when the client leaves."""
        while not self.is_whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            self.is_whole = not message.get("more_body", False)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body has more than {self._most_bytes} bytes",
            hint="limits.max_body_bytes of the model sets the limit",
            limit=self._most_bytes,
        )


def _length(value: bytes | None) -> int | None:
    """What Content-Length says; the server has refused what is not a number."""
    return int(value) if value is not None and value.isdigit() and len(value) < 19 else None
