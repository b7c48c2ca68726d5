"""What every command works with: the platform's client, two consoles, and time."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import typer
from pydantic import ValidationError
from rich.console import Console

from control_plane.cli.client import PlatformClient
from control_plane.cli.failure import CommandFailed
from control_plane.cli.known_login import recall
from control_plane.cli.settings import CliSettings, login_file


@dataclass
class Session:
    """One run of the command line. Data goes to `out`, everything else to `err`."""

    platform: PlatformClient
    out: Console
    err: Console
    now: Callable[[], float] = time.monotonic
    unix_now: Callable[[], float] = time.time  # noqa: TID251 - compared with the platform's times
    pause: Callable[[float], object] = field(default_factory=lambda: threading.Event().wait)

    @classmethod
    def start(cls, url: str | None) -> "Session":
        """A session with the platform at `url`, or where the environment says it is, or where
        `platform login` led. The key of a login goes to its own platform and nowhere else."""
        settings, known = _settings(url), recall(login_file())
        key = settings.api_key.get_secret_value() if settings.api_key else None
        address = settings.url.rstrip("/")
        if known is not None and "url" not in settings.model_fields_set:
            address = known.url
        if known is not None and key is None and address == known.url:
            key = known.api_key
        return cls(
            platform=PlatformClient.connect(address, api_key=key),
            out=Console(highlight=False, soft_wrap=True),
            err=Console(highlight=False, soft_wrap=True, stderr=True),
        )

    def print_json(self, text: str) -> None:
        """One JSON document on a line, exactly as it is."""
        self.write(text.rstrip("\n") + "\n")

    def write(self, text: str) -> None:
        """Text to standard output at once, without markup; a terminal is spared control codes."""
        file = self.out.file
        file.write(printable(text) if self.out.is_terminal else text)
        file.flush()


def session_of(context: typer.Context) -> Session:
    """Connects when a verb asks for it: `up` needs no platform."""
    session: Session = context.obj()
    context.call_on_close(session.platform.close)
    return session


def printable(text: str) -> str:
    """The text without control characters that would steer a terminal."""
    return "".join(
        character for character in text if character in "\n\t" or not _is_control(character)
    )


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character < "\xa0"


def _settings(url: str | None) -> CliSettings:
    try:
        return CliSettings() if url is None else CliSettings(url=url)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = "--url" if url is not None else f"PLATFORM_{str(problem['loc'][0]).upper()}"
        raise CommandFailed(
            f"{name} is not an address: {problem['input']!r}",
            hint="it looks like http://127.0.0.1:8470",
        ) from None


def is_interactive() -> bool:
    """Whether a person types at standard input."""
    return sys.stdin is not None and sys.stdin.isatty()
