"""Where the last `platform login` led, kept in a file that only its owner can read."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from control_plane.cli.failure import CommandFailed
from infra.errors import SourceInvalid
from infra.json_file import read_json_object

_MOST_BYTES = 64 << 10


class KnownLogin(BaseModel):
    """A platform, its key, and the secret that the key was read from."""

    model_config = ConfigDict(frozen=True)

    url: str = Field(pattern=r"^https?://[^/?#\s]+$")
    api_key: str = Field(min_length=16, max_length=4096, repr=False)
    secret_arn: str


def remember(login: KnownLogin, path: Path) -> None:
    """Replaces what was known, at once and for the owner's eyes only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(login.model_dump_json(indent=2) + "\n")
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def recall(path: Path) -> KnownLogin | None:
    """What was last remembered; None before the first login. Raises CommandFailed if damaged."""
    if not path.exists():
        return None
    try:
        return KnownLogin.model_validate(read_json_object(path, most_bytes=_MOST_BYTES))
    except (SourceInvalid, ValidationError) as error:
        raise CommandFailed(
            f"{path} is damaged", hint="platform login --terraform DIR writes it anew"
        ) from error


def forget(path: Path) -> bool:
    """Whether there was something to forget."""
    known = path.exists()
    path.unlink(missing_ok=True)
    return known
