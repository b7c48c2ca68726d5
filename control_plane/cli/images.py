"""`platform images`: runs the snapshotter's programs, which know registries and containerd."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

PROGRAM = (sys.executable, "-m", "snapshotter.main")

images = typer.Typer(
    help="Work with container images on this machine.", no_args_is_help=True, rich_markup_mode=None
)

Reference = Annotated[
    str, typer.Argument(help="registry/repository[:tag][@digest].", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@images.command("pull")
def _pull(reference: Reference, json: Json = False) -> None:
    """Bring an image into containerd; layers with an index are mounted, not downloaded."""
    _run("pull", reference, json=json)


@images.command("ls")
def _ls(json: Json = False) -> None:
    """List the images that containerd has."""
    _run("ls", json=json)


@images.command("rm")
def _rm(
    name: Annotated[str, typer.Argument(help="As `ls` shows it.", show_default=False)],
) -> None:
    """Take an image from containerd, with the layers that only it needs."""
    _run("rm", name)


@images.command("index")
def _index(reference: Reference, json: Json = False) -> None:
    """Push an index beside an image of a registry: nodes then mount its layers."""
    _run("index", reference, json=json)


@images.command("convert")
def _convert(
    reference: Reference,
    target: Annotated[str, typer.Argument(help="registry/repository:tag.", show_default=False)],
    json: Json = False,
) -> None:
    """Push an image in small chunks of zstd, with an index: a start fetches less of it."""
    _run("convert", reference, target, json=json)


def _run(*arguments: str, json: bool = False) -> None:
    """The program says everything itself: its outcome is ours."""
    command: Sequence[str] = (*PROGRAM, *arguments, *(["--json"] if json else []))
    if code := subprocess.run(command, check=False).returncode:
        raise typer.Exit(code)
