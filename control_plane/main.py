"""The console script `platform`: the command line, and `up`, which is the platform itself."""

import sys
from typing import Annotated, Any

import typer

from control_plane.cli.app import app
from infra.errors import PlatformError


def run() -> None:
    """Entry point of the console script."""
    app()


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Run the platform here: control plane, embedded Redis and one local node."""
    # Imported here: the other verbs are clients and should not wait for a server's imports.
    import uvloop
    from pydantic import ValidationError

    from control_plane.process import serve
    from control_plane.settings import Settings
    from infra import logs

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
        uvloop.run(serve(settings))
    except PlatformError as error:
        _complain(error.detail, error.hint)
        raise typer.Exit(1) from None


def _complain(error: str, hint: str | None) -> None:
    sys.stderr.write(f"error: {error}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")


if __name__ == "__main__":
    run()
