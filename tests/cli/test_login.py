"""`platform login`: from Terraform's outputs to a key that only its platform is sent."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli import login
from control_plane.cli.app import app
from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session

URL = "https://api.example.org"
ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/api-key-AbCdEf"
KEY = "k" * 48
OUTPUTS = {"url": {"value": URL}, "api_key_secret_arn": {"value": ARN}, "zones": {"value": []}}

LogIn = Callable[[str], Result]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PLATFORM_URL", "PLATFORM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "firstlight" / "login.json"


@pytest.fixture
def log_in(file: Path, monkeypatch: pytest.MonkeyPatch) -> LogIn:
    """Logs in by outputs on standard input; the secret is printed by a program of ours."""
    monkeypatch.setattr(login, "_READ_SECRET", ("printf", "%.0s" + KEY))
    return lambda outputs: CliRunner().invoke(app, ["login", "--terraform", "-"], input=outputs)


def test_a_login_is_kept_where_only_its_owner_can_read_it(file: Path, log_in: LogIn) -> None:
    done = log_in(json.dumps(OUTPUTS))

    assert (done.exit_code, done.stdout) == (0, "")
    assert KEY not in done.output
    assert json.loads(file.read_text()) == {"url": URL, "api_key": KEY, "secret_arn": ARN}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_commands_go_where_the_login_led_and_send_its_key(file: Path, log_in: LogIn) -> None:
    log_in(json.dumps(OUTPUTS))

    platform = Session.start(None).platform

    assert (platform.url, platform.sends_key) == (URL, True)


def test_the_key_of_a_login_is_sent_to_no_other_platform(
    file: Path, log_in: LogIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(json.dumps(OUTPUTS))

    assert not Session.start("https://elsewhere.example.org").platform.sends_key
    monkeypatch.setenv("PLATFORM_URL", "https://third.example.org")
    platform = Session.start(None).platform
    assert (platform.url, platform.sends_key) == ("https://third.example.org", False)


@pytest.mark.parametrize(
    "outputs",
    ["", "[]", "{}", json.dumps({"url": {"value": URL}}), json.dumps(OUTPUTS | {"url": "x"})],
)
def test_outputs_of_something_else_are_refused(file: Path, log_in: LogIn, outputs: str) -> None:
    done = log_in(outputs)

    assert done.exit_code == 1
    assert "error: these are not the outputs of a platform" in done.stderr
    assert not file.exists()


def test_a_secret_that_cannot_be_read_says_why_and_leaves_no_login(
    file: Path, log_in: LogIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "_READ_SECRET", ("sh", "-c", "echo AccessDenied >&2; exit 1"))

    done = log_in(json.dumps(OUTPUTS))

    assert done.exit_code == 1
    assert f"error: the secret {ARN} cannot be read\n  AccessDenied\nhint: " in done.stderr
    assert not file.exists()


def test_a_damaged_file_says_how_to_mend_it(file: Path, log_in: LogIn) -> None:
    file.parent.mkdir()
    file.write_text("{")

    with pytest.raises(CommandFailed, match="damaged"):
        Session.start(None)


def test_after_a_logout_nothing_is_known(file: Path, log_in: LogIn) -> None:
    log_in(json.dumps(OUTPUTS))

    done = CliRunner().invoke(app, ["logout"])

    assert (done.stderr, file.exists()) == ("logged out\n", False)
    assert Session.start(None).platform.url == "http://127.0.0.1:8470"
