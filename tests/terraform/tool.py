"""The real terraform with the real provider, found on this machine: nothing is downloaded."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import IN_CI

ROOT = Path(__file__).parents[2] / "terraform"
PROVIDER = Path("registry.terraform.io/hashicorp/aws")


@dataclass(frozen=True)
class Terraform:
    """Runs in one folder of ours, with its own data folder, so that nothing is left in the tree."""

    program: str
    configuration: Path
    data: Path
    folder: Path
    environment: Mapping[str, str]

    def inside(self, folder: Path, data: Path, **environment: str) -> "Terraform":
        """The same in another folder."""
        own = {**self.environment, **environment}
        return Terraform(self.program, self.configuration, data, folder, own)

    def __call__(self, *arguments: str, seconds: float = 300) -> str:
        """What it printed; fails with all it said."""
        return self._run([self.program, *arguments], seconds)

    def shell(self, script: str, *, seconds: float = 300) -> str:
        """What a script of bash printed that runs where terraform does, with `platform`."""
        return self._run(["bash", "-c", script], seconds)

    def _run(self, command: list[str], seconds: float) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={
                **self.environment,
                "PATH": f"{Path(sys.executable).parent}:{self.environment['PATH']}",
                "TF_CLI_CONFIG_FILE": str(self.configuration),
                "TF_DATA_DIR": str(self.data),
                "TF_IN_AUTOMATION": "1",
                "TF_INPUT": "0",
                "TF_CLI_ARGS": "-no-color",
                "TF_CLI_ARGS_init": "-backend=false",
                "TF_CLI_ARGS_apply": "-auto-approve -parallelism=30",
                "TF_CLI_ARGS_destroy": "-auto-approve -parallelism=30",
                "CHECKPOINT_DISABLE": "1",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            told = f"{done.stdout}\n{done.stderr}"[-8000:]
            pytest.fail(f"{' '.join(command)} in {self.folder}:\n{told}", pytrace=False)
        return done.stdout

    def init(self) -> None:
        self("init")

    def outputs(self) -> dict[str, Any]:
        return {name: it["value"] for name, it in json.loads(self("output", "-json")).items()}


def find(environment: Mapping[str, str], folder: Path) -> Terraform:
    """Terraform with a configuration that knows only the provider that is here.

    Where one of both is missing, that fails in CI and skips, loudly, on a laptop.
    """
    program = shutil.which("terraform")
    mirror = next(_mirrors(environment), None)
    if program is None or mirror is None:
        missing = "terraform" if program is None else f"a mirror of {PROVIDER}"
        told = (
            f"{missing} is not on this machine: install Terraform, run "
            "`terraform providers mirror DIR` in terraform/, and set FIRSTLIGHT_TF_MIRROR=DIR"
        )
        if IN_CI:
            pytest.fail(told)
        pytest.skip(told)
    configuration = folder / "terraform.rc"
    configuration.write_text(
        "disable_checkpoint = true\n"
        f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n'
    )
    passed = {name: it for name, it in environment.items() if not name.startswith(("TF_", "AWS_"))}
    return Terraform(program, configuration, folder / "data", ROOT, passed)


def _mirrors(environment: Mapping[str, str]) -> Iterator[Path]:
    """Folders that have the provider: named, then where Terraform and people keep them."""
    home = Path(environment.get("HOME", "/"))
    named = [
        environment[it]
        for it in ("FIRSTLIGHT_TF_MIRROR", "TF_PLUGIN_CACHE_DIR")
        if environment.get(it)
    ]
    shared = environment.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    places = [
        *map(Path, named),
        home / ".terraform.d/plugins",
        home / ".terraform.d/plugin-cache",
        *(Path(it) / "terraform/plugins" for it in shared.split(os.pathsep)),
        *sorted(Path("/opt").glob("*")),
    ]
    for place in places:
        if any((place / PROVIDER).glob("*")):
            yield place
