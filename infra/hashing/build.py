"""Compiles what hashes pieces: `python -m infra.hashing.build`, a second with plain g++."""

import hashlib
from pathlib import Path
from typing import Final

from infra.building import build_and_tell, build_library, run_compiler

SOURCE: Final = Path(__file__).with_name("pieces.cpp")
BUILT: Final = SOURCE.parent / "_built"
FLAGS: Final = (
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra"),
    *("-msse4.1", "-msha"),
)


def library_path() -> Path:
    """Where the library of this source is, or would be."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode())
    return BUILT / f"pieces-{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compiles, unless it is done already; raises BuildFailed, OSError."""
    return build_library(library_path(), _compile)


def _compile(target: Path) -> None:
    run_compiler([*FLAGS, str(SOURCE), "-o", str(target)])


if __name__ == "__main__":
    build_and_tell(build, "what hashes pieces")
