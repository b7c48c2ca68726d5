"""Where the compiled hot modules are, and how they take the place of the interpreted ones."""

import hashlib
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
BUILT = Path(__file__).parent / "_built"
GROUP = "firstlight"
_SHARED = f"{GROUP}__mypyc"  # where the code of all of them is

# What every hot request, relayed token and accepted job goes through, and every model that a tick
# looks at, and what these know of each other.
HOT_MODULES = (
    *(
        f"control_plane.activator.{name}"
        for name in (
            *("activator", "admission", "answers", "balancer", "call", "cold_start", "connection"),
            *("ejection", "exchange", "flights", "http_client", "ledger", "line", "lines"),
            *("meters", "outbox", "permits", "relay", "replica_client", "succession", "ticket"),
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
            *("horizon", "judge", "keep_alive", "loop", "roster", "tracked", "window"),
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
            "redis_function",
        )
    ),
)


def folder(root: Path = ROOT) -> Path:
    """Where the modules of these sources, this Python and this compiler are, or would be.

    Compiled code trusts the types of what it was compiled with, so all sources count.
    """
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {_compiler()}".encode())
    for package in ("control_plane", "infra"):
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return BUILT / digest.hexdigest()[:16]


def use() -> bool:
    """From here on hot modules are imported compiled, if they were built; nothing else changes."""
    found = folder()
    if not found.is_dir():
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


def _compiler() -> str:
    try:
        return version("mypy")
    except PackageNotFoundError:
        return "none"
