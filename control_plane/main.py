"""The console script `platform`: the command line, and `up`, which becomes the platform itself."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.app import app
from control_plane.cli.worker_program import PROGRAM


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


@app.command()
def node(
    control_plane: Annotated[
        str | None, typer.Option(help="Where the platform answers: http://10.0.0.5:8470.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What it is called there; the host's name if not given.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address that replicas listen on, if not the one that dials out."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the node key, instead of PLATFORM_NODE_TOKEN.")
    ] = None,
) -> None:
    """Lend this machine to a platform that runs elsewhere."""
    from control_plane.settings import inherited_environment

    chosen = {"CONTROL_PLANE_URL": control_plane, "ID": name, "HOST": host}
    chosen["TOKEN_FILE"] = None if token_file is None else str(token_file)
    told = {f"PLATFORM_NODE_{key}": it for key, it in chosen.items() if it is not None}
    command = (sys.executable, "-P", *PROGRAM[1:], "node")
    os.execve(command[0], command, {**inherited_environment(), **told})


if __name__ == "__main__":
    run()
