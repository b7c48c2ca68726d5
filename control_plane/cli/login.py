"""`platform login` and `logout`: the address and key of a platform that Terraform made."""

import json
import subprocess
import sys
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from control_plane.cli.failure import CommandFailed
from control_plane.cli.known_login import KnownLogin, forget, remember
from control_plane.cli.settings import login_file

_READ_SECRET = (sys.executable, "-P", "-m", "infra.aws_secret")
_SECONDS = 60.0
_WANTED = ("url", "api_key_secret_arn")


class _Output(BaseModel):
    value: str


def login(
    terraform: Annotated[
        str, typer.Option(help="Folder that was applied, or - for `terraform output -json`.")
    ],
) -> None:
    """Take the address and the key of a platform that Terraform made."""
    url, arn = _read(_output_of(terraform))
    known = KnownLogin(url=url, api_key=_secret(arn), secret_arn=arn)
    path = login_file()
    remember(known, path)
    typer.echo(f"logged in to {url}; the key is in {path}", err=True)


def logout() -> None:
    """Forget what `platform login` took."""
    typer.echo("logged out" if forget(login_file()) else "nobody was logged in", err=True)


def _output_of(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    command = ["terraform", f"-chdir={source}", "output", "-json", "-no-color"]
    return _run(command, what=f"the outputs of {source}", hint="terraform apply makes them")


def _read(text: str) -> tuple[str, str]:
    """Address and secret; raises CommandFailed where the outputs are of something else."""
    try:
        outputs: Any = json.loads(text)
        url, arn = (_Output.model_validate(outputs[name]).value for name in _WANTED)
        KnownLogin(url=url, api_key="x" * 16, secret_arn=arn)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise CommandFailed(
            "these are not the outputs of a platform: url and api_key_secret_arn are needed",
            hint="they are those of terraform/examples; after `terraform apply` they are there",
        ) from error
    return url, arn


def _secret(arn: str) -> str:
    key = _run(
        [*_READ_SECRET, arn],
        what=f"the secret {arn}",
        hint="AWS credentials that may read it are needed, such as those that ran Terraform",
    )
    if len(key) < 16 or key.strip() != key:
        raise CommandFailed(f"the secret {arn} is no key", hint="terraform apply fills it")
    return key


def _run(command: list[str], *, what: str, hint: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise CommandFailed(
            f"{what} cannot be read: there is no {command[0]} on PATH",
            hint="elsewhere: terraform output -json | platform login --terraform -",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{what} cannot be read: no answer after {_SECONDS:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-20:]
        raise CommandFailed(f"{what} cannot be read", hint=hint, details=said)
    return done.stdout
