"""The unit of a machine of one's own: systemd understands it, and confines what it runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import require
from worker.settings import NodeSettings

FOLDER = Path(__file__).parents[2] / "infra" / "systemd" / "static"
UNIT = "firstlight-node.service"
MOST_EXPOSED = 2.5  # of 10; sshd has 9.6


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, of a machine on which its program is installed."""
    require(shutil.which("systemd-analyze"), "systemd-analyze (Debian: systemd)")
    program = tmp_path / "platform"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT
    text = (FOLDER / UNIT).read_text()
    copy.write_text(text.replace("/opt/firstlight/.venv/bin/platform", str(program)))
    return copy


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_systemd_finds_nothing_wrong_with_it(unit: Path) -> None:
    said = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))

    assert UNIT not in said


def test_what_it_runs_is_confined(unit: Path) -> None:
    analyze("security", "--offline=yes", f"--threshold={int(MOST_EXPOSED * 10)}", str(unit))


def test_it_tells_the_agent_nothing_that_the_agent_does_not_know() -> None:
    told = [
        word.split("=")[0]
        for file in (UNIT, "node.env")
        for line in (FOLDER / file).read_text().splitlines()
        if not line.startswith("#")
        for word in line.removeprefix("Environment=").split()
        if word.startswith("PLATFORM_NODE_")
    ]

    known = {f"PLATFORM_NODE_{name.upper()}" for name in NodeSettings.model_fields}
    assert set(told) <= known
    assert len(told) == 4
