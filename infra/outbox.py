"""What is written to connections in one turn of the event loop goes out when the turn is over."""

import asyncio
from typing import Any, Final

_MOST_HELD_BYTES: Final = 64 << 10  # of one connection's; more would only be copied


class Outbox:
    """Holds what is written until the loop's next turn begins.

    Who is woken by the first of many packets finds the others there as well, instead of going back
    to sleep after each: at 64 connections that was a quarter of what a request costs.
    """

    def __init__(self) -> None:
        self._full: list[HeldTransport] = []

    def hold(self, transport: asyncio.Transport) -> "HeldTransport":
        """The transport as protocols see it from here on."""
        return HeldTransport(transport, self)

    def add(self, transport: "HeldTransport") -> None:
        """It has something to send."""
        if not self._full:
            asyncio.get_running_loop().call_soon(self._send)
        self._full.append(transport)

    def _send(self) -> None:
        full, self._full = self._full, []
        for transport in full:
            transport.flush()


class HeldTransport:
    """A transport whose writes go through an outbox, in order and before its end.

    What a stream transport does beyond this nobody here asks of one.
    """

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport: Final = transport
        self._outbox: Final = outbox
        self._held = b""

    def write(self, data: bytes) -> None:
        """See WriteTransport."""
        held = self._held
        if not held:
            if data:
                self._held = data
                self._outbox.add(self)
        elif len(held) + len(data) <= _MOST_HELD_BYTES:
            self._held = held + data
        else:
            self.flush()
            self._transport.write(data)

    def flush(self) -> None:
        """Sends what is held, if it can still be sent."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        """See BaseTransport."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """See WriteTransport."""
        self._held = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        """See BaseTransport."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """See ReadTransport."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See ReadTransport."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See BaseTransport."""
        return self._transport.get_extra_info(name, default)
