"""Carries bytes between a port of this machine and the unix socket of one container.

A container's network is loopback alone, so nobody reaches it, and it reaches nobody. What it
serves it serves on a unix socket that the agent made, and the agent opens the port.
"""

import asyncio
import socket
from typing import cast

BACKLOG = 4096
HIGH_WATER = 256 << 10  # bytes that wait for one side, before the other is read no more


class Relay:
    """Belongs to the event loop; `path` is the unix socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._ends: set[_End] = set()

    async def open(self, host: str) -> int:
        """Accepts from now on at a free port of that address; the port."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, 0), family=family, backlog=BACKLOG)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, sock=listening, backlog=BACKLOG)
        port: int = listening.getsockname()[1]
        return port

    def stop_accepting(self) -> None:
        """Nobody new; who is connected stays so. May be repeated."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Cuts off who is still connected."""
        self.stop_accepting()
        for end in tuple(self._ends):
            end.abort()

    def _accept(self) -> "_End":
        return _Caller(self._ends, self._path)


class _End(asyncio.Protocol):
    """One side of a connection; what it reads its peer writes."""

    def __init__(self, ends: set["_End"]) -> None:
        self._ends = ends
        self._peer: _End | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._ends.add(self)

    def data_received(self, data: bytes) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.write(data)

    def pause_writing(self) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends.discard(self)
        self._transport = None
        if self._peer is not None and self._peer._transport is not None:
            if exc is None:
                self._peer._transport.close()  # once what waits is written
            else:
                self._peer.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Caller(_End):
    """Who dialled the port; what it says before the container's side is connected is kept.

    Pausing it from the start is not enough: uvloop reads all the same once it is connected.
    """

    def __init__(self, ends: set[_End], path: str) -> None:
        super().__init__(ends)
        self._path = path
        self._early = b""
        self._has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self._peer is not None:
            super().data_received(data)
        elif self._transport is not None:
            self._early += data
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """It has said all, and may still listen."""
        self._has_ended = True
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.write_eof()
        return True

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        served = _End(self._ends)
        served._peer = self  # it may speak at once
        try:
            transport, _ = await loop.create_unix_connection(lambda: served, self._path)
        except OSError:
            self.abort()
            return
        self._peer = served
        if self._early:
            transport.write(self._early)
            self._early = b""
        if self._has_ended:
            transport.write_eof()
        if self._transport is None:  # it left meanwhile
            served.abort()
        elif transport.get_write_buffer_size() < HIGH_WATER:  # else once that is written
            self._transport.resume_reading()
