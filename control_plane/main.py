"""The console script `platform`: the command line, and `up`, which becomes the platform itself."""

import os
import sys
from typing import Annotated

import typer

from control_plane.cli.app import app


def run() -> None:
    """Entry point of the console script."""
    app()


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Run the platform here: control plane, embedded Redis and one local node."""
    # In this process's place, so that the platform does not carry the command line along.
    command = [sys.executable, "-P", "-m", "control_plane.up"]
    command += [] if host is None else ["--host", host]
    command += [] if port is None else ["--port", str(port)]
    os.execv(command[0], command)


if __name__ == "__main__":
    run()
