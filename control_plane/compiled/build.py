"""Compiles the hot modules: `python -m control_plane.compiled.build`.

mypyc makes C of them, with the types that mypy knows: a call is a call and an attribute an offset,
where the interpreter looks both up. What they do stays the same, and the same tests run over both.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from control_plane.compiled.library import BUILT, GROUP, HOT_MODULES, ROOT, find, folder
from infra.building import BuildFailed, build_and_tell, locked

_FLAGS = ("-O2", "-g0", "-w")


def build() -> Path:
    """Compiles, unless it is done already; raises BuildFailed, OSError."""
    target = folder()
    BUILT.mkdir(exist_ok=True)
    with locked(BUILT / "lock"):
        compiler = target / _compiler()
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


def _compiler() -> str:
    try:
        return f"mypy-{version('mypy')}"
    except PackageNotFoundError as error:
        raise BuildFailed("mypy is not installed") from error


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


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _compile(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        build_and_tell(build, "what is compiled of the control plane")
