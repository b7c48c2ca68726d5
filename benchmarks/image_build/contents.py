"""What an image of ours holds: the interpreter that runs this, packages it has, our own code."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from importlib.util import cache_from_source
from pathlib import Path

from packaging.requirements import Requirement

SITE = "opt/firstlight/site"
CODE = "opt/firstlight/code"
# Of the standard library: what no program of ours imports.
_UNUSED = re.compile(
    r"tests?|idlelib|tkinter|turtledemo|ensurepip|lib2to3|(site|dist)-packages|config-.*"
)
# Of packages: what is for building against them, and for testing them.
_NOT_RUN = re.compile(
    r"(^|/)(include|tests|share/cmake|torch/test)/|(^|/)torch/bin/(protoc|test_)|\.(a|h|hpp|cuh|pyi|cpp)$"
)
_OURSELVES = "firstlight"  # installed for this folder only: its code is another layer
_ROOT = Path(__file__).parents[2]
# With the sources of the kernels: what was made of them is named after them.
_OURS = frozenset({".py", ".pyc", ".txt", ".lua", ".so", ".cpp", ".h"})


@dataclass(frozen=True, slots=True)
class File:
    """A file of this machine and where it goes; relative to the root, without a slash before it."""

    path: str
    source: Path


def interpreter() -> Iterator[File]:
    """Python, its standard library and the shared libraries of both, in /usr/local."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.executable).resolve()
    yield File(f"usr/local/bin/{version}", program)
    standard = Path(sysconfig.get_path("stdlib"))
    for file in _below(standard, but=_UNUSED):
        yield File(f"usr/local/lib/{version}/{file.relative_to(standard).as_posix()}", file)


def packages(names: Iterable[str], *, without: frozenset[str] = frozenset()) -> Iterator[File]:
    """Distributions that are installed here, with all that they need in turn.

    Raises PackageNotFoundError for one that is not here.
    """
    for each in _closure(names, without):
        if each.name == _OURSELVES:
            continue
        base = Path(str(each.locate_file("")))
        for listed in each.files or ():
            source = Path(str(each.locate_file(listed)))
            inside = source.is_relative_to(base) and ".." not in listed.parts
            if not inside or listed.suffix == ".pyc" or _NOT_RUN.search(str(listed)):
                continue
            if source.is_file():
                yield File(f"{SITE}/{listed.as_posix()}", source)
            # Whoever made it: pip lists what it compiled, and `scripts/install` compiles the rest.
            bytecode = Path(cache_from_source(str(source)))
            if listed.suffix == ".py" and bytecode.is_file():
                yield File(f"{SITE}/{bytecode.relative_to(base).as_posix()}", bytecode)


def code(*folders: str) -> Iterator[File]:
    """Packages of this repository, with the native kernels that were built in place."""
    for folder in folders:
        for file in _below(_ROOT / folder):
            if file.suffix in _OURS:
                yield File(f"{CODE}/{file.relative_to(_ROOT).as_posix()}", file)


def libraries(files: Iterable[File]) -> list[File]:
    """The system's shared libraries that programs and libraries among `files` load, by `ldd`."""
    loaded = [file.source for file in files if _is_binary(file)]
    found: dict[str, Path] = {}
    for start in range(0, len(loaded), 64):
        command = ["ldd", *map(str, loaded[start : start + 64])]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for word in re.findall(r"(/\S+) \(0x", listed):
            path = Path(word)
            if not _is_packaged(path):
                found.setdefault(path.name, path.resolve())
    return [File(f"usr/lib/{name}", path) for name, path in sorted(found.items())]


def _closure(names: Iterable[str], without: frozenset[str]) -> Iterator[Distribution]:
    waiting, seen = [Requirement(name) for name in names], set(without)
    extras_seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name in without:
            continue
        found = distribution(name)
        if name not in seen:
            seen.add(name)
            yield found
            extras = {"", *wanted.extras}
        else:
            extras = {extra for extra in wanted.extras if (name, extra) not in extras_seen}
        extras_seen |= {(name, extra) for extra in extras}
        for text in found.requires or ():
            needed = Requirement(text)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)


def _below(folder: Path, *, but: re.Pattern[str] | None = None) -> Iterator[Path]:
    """Every file, but none of folders whose name is one of those."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if but is None or not but.fullmatch(name))
        yield from (Path(parent, name) for name in sorted(files))


def _is_binary(file: File) -> bool:
    return ".so" in Path(file.path).name or file.path.startswith("usr/local/bin/")


def _is_packaged(path: Path) -> bool:
    """A library that a package brings itself is found where the package puts it."""
    return "site-packages" in path.parts or path.is_relative_to(_ROOT)
