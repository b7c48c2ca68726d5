"""An image with Python and torch in it, made of this machine's own: two layers, about 1 GB."""

import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

SITE = "/opt/packages"
PACKAGES = (
    *("torch", "torchgen", "functorch", "numpy", "numpy.libs", "sympy", "mpmath", "networkx"),
    *("filelock", "fsspec", "jinja2", "markupsafe", "typing_extensions.py"),
)
_LEFT_OUT = {"site-packages", "dist-packages", "test", "ensurepip", "idlelib", "tkinter"}
_LIBRARY = re.compile(r"(/\S+) \(0x")


def torch_layers(folder: Path) -> list[Path]:
    """Two uncompressed layers, the base first; made once, since it takes a while."""
    base, packages = folder / "base.tar", folder / "packages.tar"
    if not packages.exists():
        folder.mkdir(parents=True, exist_ok=True)
        site = Path(sysconfig.get_path("purelib"))
        stdlib = Path(sysconfig.get_path("stdlib"))
        programs = [Path(sys.executable).resolve(), *stdlib.glob("lib-dynload/*.so")]
        programs += (site / "torch").glob("lib/*.so")
        _pack(base, {str(path): path for path in {*_with_libraries(programs), stdlib}})
        partial = packages.with_suffix(".partial")
        found = (site / name for name in PACKAGES if (site / name).exists())
        _pack(partial, {f"{SITE}/{path.name}": path for path in found})
        partial.rename(packages)
    return [base, packages]


def in_image(code: str) -> list[str]:
    """The command that runs Python code in a root made of the layers."""
    return [str(Path(sys.executable).resolve()), "-c", code]


ENVIRONMENT = {"PYTHONPATH": SITE, "PATH": "/usr/bin:/bin", "HOME": "/tmp"}


def _with_libraries(programs: Iterable[Path]) -> Iterator[Path]:
    """The programs and every shared library that the loader gives them, at its own paths."""
    for program in programs:
        yield program
        said = subprocess.run(["ldd", program], stdout=subprocess.PIPE, check=False).stdout
        yield from (Path(path) for path in _LIBRARY.findall(said.decode()))


def _pack(tar: Path, paths: dict[str, Path]) -> None:
    def unowned(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        parts = set(Path(member.name).parts)
        return None if parts & _LEFT_OUT and SITE[1:] not in member.name else member

    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT, dereference=False) as archive:
        for folder in ("tmp", "proc", "dev", "opt", "opt/packages"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, path in sorted(paths.items()):
            real = path.resolve() if path.is_file() else path
            archive.add(real, name, filter=unowned)
