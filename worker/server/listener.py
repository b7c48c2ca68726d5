"""Accepts the replica's connections on a socket of our own."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

from uvicorn.config import Config
from uvicorn.server import ServerState

from infra.bounded_http import BoundedHttp
from infra.outbox import Outbox

BACKLOG = 4096
# Longer than our gateway keeps an idle connection, so that the end that may retry closes first.
KEEP_ALIVE_S = 120


class Listener:
    """Accepts connections and keeps track of them."""

    def __init__(self, app: Callable[..., Awaitable[None]], given: int | None = None) -> None:
        self._given = given
        self._outbox = Outbox()
        self._state = ServerState()
        self._config = Config(
            app,
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._state.connections)

    async def bind(self, host: str, port: int) -> int:
        """Accepts from now on; returns the port, chosen by the system where 0 was given.

        A socket of our own for an address, not a name: asyncio's look-up of one costs a cold start
        3 ms for its first thread.
        """
        loop = asyncio.get_running_loop()
        if self._given is not None:
            given = socket.socket(fileno=os.dup(self._given))
            given.setblocking(False)
            self._server = await loop.create_unix_server(self._accept, sock=given, backlog=BACKLOG)
            return 0
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._server = await loop.create_server(self._accept, sock=listening, backlog=BACKLOG)
        bound: int = listening.getsockname()[1]
        return bound

    def stop_accepting(self) -> None:
        """Nobody new; idle connections end, the others end after what they are doing."""
        if self._server is not None:
            self._server.close()
        for connection in self._open():
            connection.shutdown()

    def abort(self) -> None:
        """Cuts every connection."""
        self.stop_accepting()
        for connection in self._open():
            connection.transport.abort()

    async def close(self) -> None:
        """Cuts every connection and waits for the tasks that served them."""
        self.abort()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)

    def _open(self) -> list[BoundedHttp]:
        return [one for one in self._state.connections if isinstance(one, BoundedHttp)]

    def _accept(self) -> BoundedHttp:
        return BoundedHttp(self._outbox, self._config, self._state, {})
