"""Compiles what is built at install: by one process at a time, and named after what it is made of.

What is named after its sources is never stale: other sources have another name.
"""

import fcntl
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

COMPILER: Final = "g++"
_PLATFORM: Final = "linux-x86_64"


class BuildFailed(Exception):
    """A compiler is missing or refused a source."""


def build_library(path: Path, compile_to: Callable[[Path], None]) -> Path:
    """Has `compile_to` make the library, `NAME-DIGEST.so`, unless it is there; older ones go.

    `compile_to` may leave what it likes beside the file it is to make. Raises BuildFailed, OSError.
    """
    if sysconfig.get_platform() != _PLATFORM:
        raise BuildFailed(f"there is no source for {sysconfig.get_platform()}")
    built = path.parent
    built.mkdir(exist_ok=True)
    with locked(built / "lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=built) as folder:
                made = Path(folder) / path.name
                compile_to(made)
                made.replace(path)
            name, _ = path.name.rsplit("-", 1)
            for old in built.glob(f"{name}-*.so"):
                if old != path:
                    old.unlink()
    return path


def run_compiler(arguments: Sequence[str]) -> None:
    """Raises BuildFailed with what the compiler says."""
    if shutil.which(COMPILER) is None:
        raise BuildFailed(f"{COMPILER} is missing: on Debian, apt-get install g++")
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise BuildFailed(f"{COMPILER} failed:\n{done.stderr[-4000:]}")


def build_and_tell(build: Callable[[], Path], what: str) -> None:
    """The program of a build: says where `what` is, or ends with status 1 and the reason."""
    try:
        sys.stdout.write(f"{build()}\n")
    except (BuildFailed, OSError) as error:
        sys.exit(f"error: {what} cannot be built: {error}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Others wait who build the same."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
