"""Compiles what hashes pieces: `python -m infra.hashing.build`, a second with plain g++.

The library is named after what it was made of: a stale one is never loaded.
"""

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("pieces.cpp")
BUILT: Final = SOURCE.parent / "_built"
COMPILER: Final = "g++"
FLAGS: Final = (
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra"),
    *("-msse4.1", "-msha"),
)


class BuildFailed(Exception):
    """The compiler is missing or refused the source."""


def library_path() -> Path:
    """Where the library of this source is, or would be."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode())
    return BUILT / f"pieces-{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compiles, unless it is done already; raises BuildFailed."""
    path = library_path()
    if path.exists():
        return path
    if shutil.which(COMPILER) is None:
        raise BuildFailed(f"{COMPILER} is missing: on Debian, apt-get install g++")
    BUILT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        made = Path(folder) / path.name
        command = [COMPILER, *FLAGS, str(SOURCE), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise BuildFailed(f"{COMPILER} failed:\n{done.stderr[-4000:]}")
        made.replace(path)
    for old in BUILT.glob("pieces-*.so"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def main() -> None:
    """Builds and says where; ends with status 1 and the reason where that fails."""
    if sysconfig.get_platform() != "linux-x86_64":
        sys.exit(f"error: there is no source for {sysconfig.get_platform()}")
    try:
        sys.stdout.write(f"{build()}\n")
    except (BuildFailed, OSError) as error:
        sys.exit(f"error: the library that hashes is not built: {error}")


if __name__ == "__main__":
    main()
