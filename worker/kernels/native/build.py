"""Compiles the native kernels: `python -m worker.kernels.native.build`.

Plain g++ and torch's headers: what knows torch is compiled once, what knows numbers only once per
instruction set. The library is named after what it was made of: a stale one is never loaded.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent
BUILT = SOURCES / "_built"
COMPILER = "g++"
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


class BuildFailed(Exception):
    """The compiler is missing or refused a source."""


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
    """Compiles, unless it is done already; raises BuildFailed."""
    path = library_path()
    BUILT.mkdir(exist_ok=True)
    with _locked(BUILT / "lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=BUILT) as folder:
                made = Path(folder) / path.name
                _compile(Path(folder), made)
                made.replace(path)
            for old in BUILT.glob("firstlight-*.so"):
                if old != path:
                    old.unlink()
    return path


def _inputs() -> list[Path]:
    """Everything that decides what the library does."""
    return sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), Path(__file__)])


def _compile(folder: Path, target: Path) -> None:
    if shutil.which(COMPILER) is None:
        raise BuildFailed(f"{COMPILER} is missing: on Debian, apt-get install g++")
    objects = list(_objects(folder))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(_compile_one, objects):
            pass
    libraries = _torch() / "lib"
    _run([
        *(COMPILER, "-shared", "-o", str(target), *(str(each.target) for each in objects)),
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
    _run([
        *(COMPILER, *FLAGS, *made.arguments, "-c", str(made.source), "-o", str(made.target)),
    ])  # fmt: skip


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise BuildFailed(f"{command[0]} failed:\n{done.stderr[-4000:]}")


def _torch() -> Path:
    """torch's folder, without importing it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise BuildFailed("torch is not installed")
    return Path(found.origin).parent


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Builds and says where; ends with status 1 and the reason where that fails."""
    if sysconfig.get_platform() != "linux-x86_64":
        sys.exit(f"error: there are no native kernels for {sysconfig.get_platform()}")
    try:
        sys.stdout.write(f"{build()}\n")
    except (BuildFailed, OSError) as error:
        sys.exit(f"error: the native kernels are not built: {error}")


if __name__ == "__main__":
    main()
