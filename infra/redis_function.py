"""A function in Redis, called over one connection of its own: many calls share a write."""

import asyncio
import hashlib
import random
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

from infra.backoff import Backoff
from infra.redis import unavailable

TRIES = 6  # about half a second in all, as in infra.redis
CONNECT_S = 2.0
_BACKOFF = Backoff(first_s=0.02, most_s=0.2)

_UNKNOWN, _KNOWN = "Function not found", "already exists"

Argument = str | bytes | int | float


class _Lost(Exception):
    """The connection ended: whether the function ran is not known."""


class RedisFunction:
    """Calls a function that may be repeated, and repeats it while connections break.

    `source` is Lua that defines `run(keys, args)`. It is loaded into the server once (Redis 7 or
    Valkey), so that a call does not build it up again, as that of a script does; and redis-py
    costs ten times the CPU. `key` is the one key that is named. `url` is as for
    `infra.redis.connect`; of its TLS options, `ssl_ca_certs` and `ssl_cert_reqs=none` are known.
    """

    def __init__(self, url: str, name: str, source: str, key: str, *, reply_s: float = 5.0) -> None:
        self._options: dict[str, Any] = {**parse_url(url)}
        self._name = f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
        self._source = _library(self._name, source)
        self._key = key
        self._reply_s = reply_s
        self._connection: _Connection | None = None
        # Guards that one connection is made at a time, however many calls need it.
        self._connecting = asyncio.Lock()

    async def __call__(self, arguments: Sequence[Argument], *, reads: bool = False) -> Any:
        """The function's reply; raises StoreUnavailable, also where the server refuses.

        With `reads` it is refused any write, and runs where the server takes none.
        """
        name = f"{self._name}_ro" if reads else self._name
        give_up_at = asyncio.get_running_loop().time() + self._reply_s
        failures, was_loaded = 0, False
        while True:
            try:
                connection = await self._connected()
                reply = await connection.call(("FCALL", name, 1, self._key, *arguments))
                if isinstance(reply, hiredis.ReplyError):
                    if _UNKNOWN in str(reply) and not was_loaded:
                        await self._load(connection)
                        was_loaded = True
                        continue
                    if not str(reply).startswith("LOADING"):
                        raise unavailable(reply)
                    raise _Lost(str(reply))
                return reply
            except (_Lost, OSError, TimeoutError) as error:
                failures += 1
                if failures >= TRIES or asyncio.get_running_loop().time() >= give_up_at:
                    raise unavailable(error) from error
                await asyncio.sleep(_BACKOFF.delay_s(failures, jitter=random.random()))

    async def _load(self, connection: "_Connection") -> None:
        reply = await connection.call(("FUNCTION", "LOAD", self._source))
        if isinstance(reply, hiredis.ReplyError) and _KNOWN not in str(reply):
            raise unavailable(reply)

    async def close(self) -> None:
        """Calls under way fail."""
        if self._connection is not None:
            self._connection.abort("it is closed")
            await asyncio.sleep(0)  # lets the transport close its socket

    async def _connected(self) -> "_Connection":
        connection = self._connection
        if connection is not None and connection.is_open:
            return connection
        async with self._connecting:
            if self._connection is None or not self._connection.is_open:
                async with asyncio.timeout(CONNECT_S):
                    self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> "_Connection":
        options, loop = self._options, asyncio.get_running_loop()
        reply_s = self._reply_s
        if "path" in options:
            _, connection = await loop.create_unix_connection(
                lambda: _Connection(reply_s), options["path"]
            )
        else:
            _, connection = await loop.create_connection(
                lambda: _Connection(reply_s),
                options.get("host", "localhost"),
                options.get("port", 6379),
                ssl=_tls(options),
            )
        try:
            for command in _greeting(options):
                reply = await connection.call(command)
                if isinstance(reply, hiredis.ReplyError):
                    raise unavailable(reply)
        except BaseException:
            connection.abort("it could not be set up")
            raise
        return connection


class _Connection(asyncio.Protocol):
    """Replies come in the order of the calls."""

    def __init__(self, reply_s: float) -> None:
        self._reply_s = reply_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._replies = 0
        self.is_open = False

    async def call(self, command: Sequence[Argument]) -> Any:
        """The reply, which may be a ReplyError; raises _Lost."""
        if not self.is_open:
            raise _Lost("the connection was closed")
        reply: asyncio.Future[Any] = self._loop.create_future()
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(cast(Any, tuple(command))))
        self._waiting.append(reply)
        if self._watch is None:
            self._watch = self._loop.call_later(self._reply_s, self._look, self._replies)
        return await reply

    def abort(self, why: str) -> None:
        """Closes at once; who waits is told that it is not known what became of the call."""
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for reply in waiting:
            if not reply.done():
                reply.set_exception(_Lost(why))

    def _flush(self) -> None:
        data, self._outgoing = b"".join(self._outgoing), []
        if self.is_open and self._transport is not None:
            self._transport.write(data)

    def _look(self, replies: int) -> None:
        """Nothing has come for so long: the calls behind it would wait for ever."""
        self._watch = None
        if not self._waiting:
            return
        if self._replies == replies:
            self.abort(f"no reply within {self._reply_s:g} s")
        else:
            self._watch = self._loop.call_later(self._reply_s, self._look, self._replies)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._replies += 1
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort(f"it does not speak Redis: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.abort(f"the connection was lost: {error or 'the server closed it'}")


def _library(name: str, source: str) -> str:
    """Registered under its name, and once more for calls that only read."""
    return (
        f"#!lua name={name}\n{source}\n"
        f"redis.register_function{{function_name='{name}', callback=run}}\n"
        f"redis.register_function{{function_name='{name}_ro', callback=run, "
        "flags={'no-writes'}}\n"
    )


def _greeting(options: dict[str, Any]) -> list[tuple[Argument, ...]]:
    commands: list[tuple[Argument, ...]] = []
    if password := options.get("password"):
        username = options.get("username")
        commands.append(("AUTH", password) if username is None else ("AUTH", username, password))
    if database := options.get("db"):
        commands.append(("SELECT", database))
    return commands


def _tls(options: dict[str, Any]) -> ssl.SSLContext | None:
    if not issubclass(options.get("connection_class", object), SSLConnection):
        return None
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
