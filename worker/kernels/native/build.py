"""Compiles the native kernels: `python -m worker.kernels.native.build`.

Plain g++ and torch's headers: what knows torch is compiled once, what knows numbers only once per
instruction set. The library is named after what it was made of: a stale one is never loaded.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from infra.building import BuildFailed, build_and_tell, build_library, run_compiler

SOURCES = Path(__file__).parent
BUILT = SOURCES / "_built"
LEVELS = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
        "-mavx512vnni",
    ),
    "avx512bf16": (
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
        *("-mavx512vnni", "-mavx512bf16"),
    ),
}
# Contracting a product and a sum into one instruction, here and not there, would change bits.
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=off", "-Wall", "-Wextra")
LEVEL_SUFFIX = "_kernels.cpp"


@dataclass(frozen=True)
class _Object:
    source: Path
    target: Path
    arguments: tuple[str, ...]


def library_path() -> Path:
    """Where the library for these sources and this torch is, or would be."""
    digest = hashlib.sha256(version("torch").encode())
    for path in _inputs():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return BUILT / f"firstlight-{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compiles, unless it is done already; raises BuildFailed, OSError."""
    return build_library(library_path(), _compile)


def _inputs() -> list[Path]:
    """Everything that decides what the library does."""
    return sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), Path(__file__)])


def _compile(target: Path) -> None:
    objects = list(_objects(target.parent))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(_compile_one, objects):
            pass
    libraries = _torch() / "lib"
    run_compiler([
        *("-shared", "-o", str(target), *(str(each.target) for each in objects)),
        *(f"-L{libraries}", "-ltorch_cpu", "-lc10", "-l:libgomp.so.1"),
    ])  # fmt: skip


def _objects(folder: Path) -> Iterator[_Object]:
    torch = _torch() / "include"
    headers = ("-isystem", str(torch), "-isystem", str(torch / "torch/csrc/api/include"))
    for source in sorted(SOURCES.glob("*.cpp")):
        if source.name.endswith(LEVEL_SUFFIX):
            for level, flags in LEVELS.items():
                arguments = (*flags, f"-DFIRSTLIGHT_LEVEL={level}")
                yield _Object(source, folder / f"{source.stem}_{level}.o", arguments)
        else:
            yield _Object(source, folder / f"{source.stem}.o", headers)


def _compile_one(made: _Object) -> None:
    run_compiler([*FLAGS, *made.arguments, "-c", str(made.source), "-o", str(made.target)])


def _torch() -> Path:
    """torch's folder, without importing it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise BuildFailed("torch is not installed")
    return Path(found.origin).parent


if __name__ == "__main__":
    build_and_tell(build, "the native kernels")
