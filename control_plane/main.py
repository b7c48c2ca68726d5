"""The console script `platform`: the command line, and `up`, which is the platform itself."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvicorn
import uvloop
from pydantic import ValidationError

from control_plane.api.app import create_app
from control_plane.cli.app import app
from control_plane.composition import ControlPlane
from control_plane.settings import Settings
from infra import logs
from infra.bounded_http import BoundedHttp
from infra.errors import PlatformError

log = structlog.get_logger()

_BACKLOG = 4096


def run() -> None:
    """Entry point of the console script."""
    app()


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Run the platform here: control plane, embedded Redis and one local node."""
    chosen: dict[str, Any] = {"host": host, "port": port}
    try:
        settings = Settings(**{name: it for name, it in chosen.items() if it is not None})
    except ValidationError as error:
        for problem in error.errors():
            name = "PLATFORM_" + "_".join(str(part) for part in problem["loc"]).upper()
            _complain(f"{name}: {problem['msg']}", "see docs/settings.md")
        raise typer.Exit(2) from None
    logs.configure(level=settings.log_level, as_json=settings.log_format == "json")
    try:
        uvloop.run(_serve(settings))
    except PlatformError as error:
        _complain(error.detail, error.hint)
        raise typer.Exit(1) from None
    except OSError as error:
        _complain(str(error), "another program may use the port: try --port 0")
        raise typer.Exit(1) from None


async def _serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT, then lets running requests finish."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with _listen(settings.host, settings.port) as listener:
        url = _url(settings.host, listener)
        async with ControlPlane(settings, url=url, environment=os.environ) as plane:  # noqa: TID251
            server = _Server(
                uvicorn.Config(
                    create_app(plane.services()),
                    loop="none",
                    http=BoundedHttp,
                    ws="none",
                    lifespan="off",
                    access_log=False,
                    log_config=None,
                    server_header=False,
                    timeout_graceful_shutdown=max(1, round(settings.drain_s)),
                )
            )
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            await plane.start()
            with _announced(settings.state_dir, url):
                _greet(url)
                await asyncio.wait(
                    (serving, asyncio.create_task(stopping.wait())),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                log.info("platform.stopping")
            plane.activator.stop()
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: ours know that requests may be held."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Binds before anything is started, so that a used port costs nothing; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    with listener:
        yield listener


def _url(host: str, listener: socket.socket) -> str:
    """How programs on this machine reach the listener."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{reachable}:{listener.getsockname()[1]}"


@contextmanager
def _announced(state_dir: Path, url: str) -> Iterator[None]:
    """Leaves `endpoint.json` in the state folder for as long as the platform serves."""
    announcement = state_dir / "endpoint.json"
    fresh = announcement.with_suffix(".new")
    fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    fresh.replace(announcement)
    try:
        yield
    finally:
        announcement.unlink(missing_ok=True)


def _greet(url: str) -> None:
    log.info("platform.ready", url=url, docs=f"{url}/docs", metrics=f"{url}/metrics")


def _complain(error: str, hint: str | None) -> None:
    sys.stderr.write(f"error: {error}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")


if __name__ == "__main__":
    run()
