"""helm, run on the chart that is shipped."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import require

ROOT = Path(__file__).parents[2]
CHART = ROOT / "infra" / "kubernetes"
CACHED = "helm/4.2.3/helm"  # where scripts/helm puts it


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs it on the chart; its outcome is the caller's to judge."""
    program = _program()
    return subprocess.run([program, *arguments], cwd=CHART, capture_output=True, text=True)


@cache
def rendered(values: str, *sets: str) -> tuple[dict[str, Any], ...]:
    """The objects of the release `firstlight` with a file of values and single ones."""
    flags = [part for one in sets for part in ("--set-json", one)]
    done = helm("template", "firstlight", ".", "--values", values, *flags)
    assert done.returncode == 0, done.stderr
    return tuple(filter(None, yaml.safe_load_all(done.stdout)))


def refused(values: str, *sets: str) -> str:
    """What helm says of values that the schema does not allow."""
    flags = [part for one in sets for part in ("--set-json", one)]
    done = helm("template", "firstlight", ".", "--values", values, *flags)
    assert done.returncode != 0, "it was rendered"
    return done.stderr


def _program() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"  # noqa: TID251 - XDG's own
    cached = Path(home).expanduser() / "firstlight" / CACHED
    found = shutil.which("helm") or (str(cached) if cached.exists() else None)
    require(found, "helm")
    assert found is not None
    return found
