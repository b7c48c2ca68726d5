"""Our Dockerfiles built by buildah, unchanged, where no public registry of images is in reach: what
they begin with is a Debian with Python, made on the spot."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.dockerfile import parse
from tests.support.processes import require

_ROOT = Path(__file__).parents[2]
_DOCKERFILES = _ROOT / "infra" / "images"
_PACKAGES = "ca-certificates,python3,python3-dev,python3-pip"  # what python's slim image has of it
_BUILD_S = 1200


class ImageBuilder:
    """Builds images into a folder of its own, and pushes them to a registry of this machine."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        require(os.geteuid() == 0, "root, which building images needs,")
        for program in ("buildah", "mmdebstrap"):
            require(shutil.which(program), program)
        self._folder = folder
        storage = folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\n'
            f'runroot = "{folder / "run"}"\ngraphroot = "{folder / "images"}"\n'
        )
        self._environment = environment | {"CONTAINERS_STORAGE_CONF": str(storage)}
        self._settings = folder / "pip.conf"
        self._mounts = _pip_settings(self._settings)

    def make_base(self) -> None:
        """Debian with Python, under the name that the Dockerfiles begin with."""
        (version,) = {
            parse(path.read_text()).arguments["PYTHON"]
            for path in _DOCKERFILES.glob("*.Dockerfile")
        }
        base = self._run("buildah", "from", "scratch").strip()
        tree = self._run("buildah", "mount", base).strip()
        self._run(
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}"),
            *("bookworm", tree),
        )
        self._run(
            "buildah", "commit", "--quiet", "--rm", base, f"docker.io/library/python:{version}"
        )

    def push(self, name: str, address: str) -> str:
        """Builds `infra/images/NAME.Dockerfile` as Docker would, and pushes it; its reference."""
        reference = f"{address}/{name}:latest"
        mounts = [word for path in self._mounts for word in ("--volume", f"{path}:{path}:ro")]
        self._run(
            *("buildah", "build", "--layers", "--pull-never", "--isolation", "chroot"),
            *("--network", "host", "--format", "docker", "--tag", reference),
            *("--file", str(_DOCKERFILES / f"{name}.Dockerfile")),
            *("--volume", f"{self._settings}:/etc/pip.conf:ro", *mounts, str(_ROOT)),
        )
        self._run("buildah", "push", "--quiet", "--tls-verify=false", reference)
        return reference

    def close(self) -> None:
        """Takes all of it away."""
        self._run("buildah", "rm", "--all")
        self._run("buildah", "rmi", "--all", "--force")

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_S,
        )
        said = (done.stdout + done.stderr)[-6000:]
        assert done.returncode == 0, (
            f"{' '.join(command[:3])} ended with {done.returncode}:\n{said}"
        )
        return done.stdout


@contextmanager
def image_builder(folder: Path, environment: dict[str, str]) -> Iterator[ImageBuilder]:
    """One that has the base; nothing of it is left at the end but what was pushed."""
    builder = ImageBuilder(folder, environment)
    try:
        builder.make_base()
        yield builder
    finally:
        builder.close()


def _pip_settings(to: Path) -> list[Path]:
    """Writes this machine's settings of pip, so that a build finds the packages that we find; the
    files and folders that they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in {"global", "install", ":env:"}:
            settings[key] = str(ast.literal_eval(value))
    lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
    to.write_text(f"[global]\n{lines}")
    words = [word for value in settings.values() for word in value.split()]
    # what an index names may lie beside it
    folders = [Path(word.removeprefix("file://")).parent for word in words if word[:5] == "file:"]
    paths = {*folders, *(Path(word) for word in words if word[0] == "/")}
    return sorted(path for path in paths if path.exists())
