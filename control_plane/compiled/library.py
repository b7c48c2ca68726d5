"""Where the compiled hot modules are, and how they take the place of the interpreted ones."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
BUILT = Path(__file__).parent / "_built"
GROUP = "firstlight"
_SHARED = f"{GROUP}__mypyc"  # where the code of all of them is
_STAMP = "stamp"
_PYTHON = str(sys.implementation.cache_tag).encode()

# What every hot request, relayed token and accepted job goes through, and every model that a tick
# looks at, and what these know of each other.
HOT_MODULES = (
    *(
        f"control_plane.activator.{name}"
        for name in (
            *("activator", "admission", "answers", "balancer", "call", "cold_start", "connection"),
            *("ejection", "exchange", "flights", "http_client", "ledger", "line", "lines"),
            *("meters", "permits", "relay", "replica_client", "succession", "ticket"),
            *("ticket_queue", "waiting_room"),
        )
    ),
    *(
        f"control_plane.api.{name}"
        for name in (
            *("affinity", "callers", "generation", "hot", "hot_http", "hot_request", "intake"),
            *("patience", "targets", "job_desk", "asynchronous"),
        )
    ),
    *(
        f"control_plane.autoscaler.{name}"
        for name in (
            *("backlog", "decider", "decision", "demand", "demand_table", "experience"),
            *("horizon", "judge", "keep_alive", "loop", "roster", "rounds", "tracked", "window"),
        )
    ),
    "control_plane.deployments.release",
    "control_plane.deployments.service",
    "control_plane.fleet.timeline",
    *(
        f"control_plane.queue.{name}"
        for name in ("acceptance", "job", "order", "redis_store", "service")
    ),
    *(f"control_plane.tenancy.{name}" for name in ("identity", "keys", "quotas", "usage")),
    *(
        f"infra.{name}"
        for name in (
            *("agenda", "bounded_http", "clock", "generation_requests", "metrics"),
            *("outbox", "redis_function"),
        )
    ),
)


def folder(root: Path = ROOT, built: Path = BUILT) -> Path:
    """Where the modules of these sources and this Python are, or would be.

    Compiled code trusts the types of what it was compiled with, so all sources count.
    """
    digest = hashlib.sha256(_PYTHON)
    for source in _sources(root):
        path = Path(source.path)
        name = path.relative_to(root).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return built / digest.hexdigest()[:16]


def find(root: Path = ROOT, built: Path = BUILT) -> Path | None:
    """The folder of these sources, if it was built.

    They are read only where one has another size or time than when they were read last.
    """
    seen = _look(root)
    for stamp in built.glob(f"*/{_STAMP}"):
        with suppress(OSError):  # it is another user's, or was just taken away by a build
            if stamp.read_bytes() == seen:
                return stamp.parent
    found = folder(root, built)
    if not found.is_dir():
        return None
    with suppress(OSError):  # who runs us need not be who built
        (found / _STAMP).write_bytes(seen)
    return found


def use() -> bool:
    """From here on hot modules are imported compiled, if they were built; nothing else changes."""
    found = find()
    if found is None:
        return False
    sys.meta_path.insert(0, _Compiled(found))
    return True


def file_of(module: str) -> Path:
    """The file of a compiled module, in its folder."""
    return Path(*module.split(".")).with_suffix(EXTENSION_SUFFIXES[0])


class _Compiled:
    """Finds hot modules in a folder, before the path finder finds their sources."""

    def __init__(self, found: Path) -> None:
        self._files = {name: str(found / file_of(name)) for name in (_SHARED, *HOT_MODULES)}

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        file = self._files.get(name)
        if file is None:
            return None
        return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))


def _sources(root: Path) -> Iterator[os.DirEntry[str]]:
    for package in ("control_plane", "infra"):
        yield from _below(str(root / package))


def _below(folder: str) -> Iterator[os.DirEntry[str]]:
    if not os.access(folder, os.F_OK):
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.endswith(".py"):
            yield entry
        elif entry.is_dir() and entry.name not in ("__pycache__", BUILT.name):
            yield from _below(entry.path)


def _look(root: Path) -> bytes:
    """What the sources look like from outside."""
    digest = hashlib.sha256(_PYTHON)
    for source in _sources(root):
        status = source.stat()
        digest.update(f"{source.path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.digest()
