"""Compiles the hot modules: `python -m control_plane.compiled.build`.

mypyc makes C of them, with the types that mypy knows: a call is a call and an attribute an offset,
where the interpreter looks both up. What they do stays the same, and the same tests run over both.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from control_plane.compiled.library import BUILT, GROUP, HOT_MODULES, ROOT, find, folder

_FLAGS = ("-O2", "-g0", "-w")


class BuildFailed(Exception):
    """A compiler is missing or refused a source."""


def build() -> Path:
    """Compiles, unless it is done already; raises BuildFailed."""
    target = folder()
    BUILT.mkdir(exist_ok=True)
    with _locked(BUILT / "lock"):
        compiler = target / f"mypy-{version('mypy')}"
        if not compiler.exists():
            with tempfile.TemporaryDirectory(dir=BUILT) as scratch:
                made = Path(scratch) / "made"
                _compile_apart(Path(scratch), made)
                (made / compiler.name).touch()
                shutil.rmtree(target, ignore_errors=True)
                made.replace(target)
            for old in BUILT.iterdir():  # who runs on it has loaded all of it
                if old.is_dir() and old != target:
                    shutil.rmtree(old)
        find()  # leaves its stamp: who runs the platform may not be allowed to
    return target


def _compile_apart(scratch: Path, made: Path) -> None:
    """In a process of its own: the compilers end it when they fail, and write where they like."""
    command = [sys.executable, "-m", "control_plane.compiled.build", str(scratch), str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise BuildFailed((done.stdout + done.stderr)[-4000:])


def _compile(scratch: Path, made: Path) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution  # type: ignore[import-untyped]

    sources = [str(Path(*name.split(".")).with_suffix(".py")) for name in HOT_MODULES]
    options = ["--follow-imports=silent", f"--cache-dir={scratch / 'types'}"]
    extensions = mypycify(
        [*options, *sources],
        target_dir=str(scratch / "c"),
        group_name=GROUP,
    )
    for extension in extensions:
        extension.extra_compile_args = list(_FLAGS)
    command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(made), str(scratch / "objects")
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    command.run()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Builds and says where; ends with status 1 and the reason where that fails."""
    if len(sys.argv) == 3:
        _compile(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    try:
        sys.stdout.write(f"{build()}\n")
    except (BuildFailed, OSError, PackageNotFoundError) as error:
        sys.exit(f"error: the hot modules are not compiled: {error}")


if __name__ == "__main__":
    main()
