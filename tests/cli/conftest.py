"""Runs the command line in this process, against a fake platform, without colour."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.main import get_command

from control_plane.cli import group
from control_plane.cli.app import app
from control_plane.cli.client import PlatformClient
from control_plane.cli.session import Session
from tests.cli.fake_platform import URL, FakePlatform

WIDTH = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind; lines without the spaces that fill them up."""

    code: int
    out: str
    err: str


@dataclass
class FakeTime:
    """Moves on by itself whenever somebody looks or waits."""

    seconds: float = 0.0
    step_s: float = 0.0

    def now(self) -> float:
        self.seconds += self.step_s
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds


Run = Callable[..., Outcome]


@pytest.fixture
def platform() -> FakePlatform:
    return FakePlatform()


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def run(platform: FakePlatform, fake_time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("ls", "--json")` gives the command's outcome."""

    def run(*arguments: str, api_key: str | None = None, **options: Any) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        http = httpx.Client(base_url=URL, headers=headers, transport=httpx.MockTransport(platform))
        session = Session(
            platform=PlatformClient(http),
            out=Console(file=out, width=WIDTH, highlight=False, soft_wrap=True, **options),
            err=Console(file=err, width=WIDTH, highlight=False, soft_wrap=True, **options),
            now=fake_time.now,
            unix_now=lambda: 1_700_000_090.0,
            pause=fake_time.pause,
        )
        monkeypatch.setattr(group, "Console", lambda **_: session.err)
        code = 0
        try:
            get_command(app).main(list(arguments), obj=lambda: session)
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Outcome(code, _stripped(out.getvalue()), _stripped(err.getvalue()))

    return run


def _stripped(text: str) -> str:
    return "".join(line.rstrip(" ") + "\n" for line in text.splitlines())
