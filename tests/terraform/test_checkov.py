"""checkov's findings are answered: mended, or skipped where they are, with a reason."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terraform.tool import ROOT

VERSION = "3.3.30"

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def checkov(environment: dict[str, str]) -> Path:
    """Its own environment, kept between runs: it wants other versions of what we use."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path(environment["HOME"]) / ".cache")
    folder = cache / "firstlight" / f"checkov-{VERSION}"
    program = folder / "bin" / "checkov"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "-qq", "--no-compile"]
        subprocess.run([*install, f"checkov=={VERSION}"], check=True)
    return program


def test_checkov_finds_nothing_that_is_not_answered(checkov: Path, tmp_path: Path) -> None:
    quiet = {"LOG_LEVEL": "CRITICAL", "PATH": os.defpath, "HOME": str(tmp_path)}
    done = subprocess.run(
        [checkov, "-d", ROOT / "examples", "--framework", "terraform", "-o", "json", "--compact"],
        env=quiet,
        capture_output=True,
        text=True,
    )

    assert done.stdout, done.stderr
    results = json.loads(done.stdout)["results"]
    failed = [f"{it['check_id']} {it['resource']}" for it in results["failed_checks"]]
    assert failed == []
    assert len(results["passed_checks"]) > 100


def test_every_skip_says_why() -> None:
    skips = [
        line.strip()
        for path in ROOT.glob("**/*.tf")
        for line in path.read_text().splitlines()
        if "checkov:skip" in line
    ]

    assert skips
    reasoned = re.compile(r"#checkov:skip=CKV2?_AWS_\d+:\S.{20,}")
    assert [it for it in skips if not reasoned.fullmatch(it)] == []
