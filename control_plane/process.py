"""The platform's process: from the bound socket to the last drained request."""

import asyncio
import ctypes
import gc
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import structlog
import uvicorn

from control_plane.api.app import Edge, create_edge
from control_plane.composition import ControlPlane
from control_plane.settings import Settings, inherited_environment
from infra.errors import Conflict

log = structlog.get_logger()

_BACKLOG = 4096
_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 128 << 10
_LAST_WORDS_S = 2  # for what was written to be read by slow clients


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT, then lets running requests finish.

    Raises Conflict where the address or the state folder cannot be had, and what the
    composition raises.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    _make_folder(settings.state_dir)
    with _listen(settings.host, settings.port) as listener:
        url = _url(settings.host, listener)
        async with ControlPlane(settings, url=url, environment=inherited_environment()) as plane:
            edge = create_edge(plane.services())
            server = _Server(http_config(edge, keep_alive_s=settings.keep_alive_s))
            settle_collector()
            _return_large_blocks()
            await plane.start()  # what dials meanwhile waits in the listener's backlog
            announcement = announce(settings.state_dir, url)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.serve(sockets=[listener]))
                log.info("platform.ready", url=url, docs=f"{url}/docs")
                try:
                    await stopping.wait()
                finally:
                    announcement.unlink(missing_ok=True)
                log.info("platform.stopping", drain_s=settings.drain_s)
                await plane.activator.drain(within_s=settings.drain_s)
                await plane.retire()
                server.should_exit = True


def http_config(edge: Edge, *, keep_alive_s: int) -> uvicorn.Config:
    """How connections are served, and for how long one is kept on which nothing is asked."""
    return uvicorn.Config(
        edge.app,
        loop="none",
        http=cast(type[asyncio.Protocol], edge.connection),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )


def settle_collector() -> None:
    """Takes what start-up made out of the collector's sight: it lives as long as the process.

    What the young and the middle generation hold is looked through in one piece, so they are
    small; the oldest is looked through as seldom as that allows."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 2, 3_200)


def _return_large_blocks() -> None:
    """What is large goes back to the kernel when it is free: glibc would learn from the first
    tokenizer that is looked at to keep such blocks, 6 MB of them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: ours know that requests may be held."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Conflict(
            f"cannot make the folder {folder}: {error.strerror}",
            hint="set PLATFORM_STATE_DIR to another one",
        ) from None


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Binds before anything is started, so that a used port costs nothing; raises Conflict."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise Conflict(
            f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}",
            hint="another program may use the port: try --port 0",
        ) from None
    with listener:
        yield listener


def _url(host: str, listener: socket.socket) -> str:
    """How programs on this machine reach the listener."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    named = f"[{reachable}]" if ":" in reachable else reachable
    return f"http://{named}:{listener.getsockname()[1]}"


def announce(state_dir: Path, url: str) -> Path:
    """Says in `endpoint.json` where the platform serves; the file, to be removed when it does not
    any more. Raises Conflict."""
    announcement = state_dir / "endpoint.json"
    fresh = announcement.with_suffix(".new")
    try:
        fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        fresh.replace(announcement)
    except OSError as error:
        raise Conflict(
            f"cannot write {announcement}: {error.strerror}", hint="is there room on its disk?"
        ) from None
    return announcement
