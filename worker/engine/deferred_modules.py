"""Parts of a package that are imported at once and run when somebody first needs one of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from sys import meta_path
from threading import RLock
from types import ModuleType, TracebackType
from typing import Any

_PART = "__deferred__"


def is_deferred(module: ModuleType) -> bool:
    """Whether it has not run yet."""
    return _PART in vars(module)


class DeferredParts(MetaPathFinder):
    """`with DeferredParts(package, names): import package` leaves modules of those names for later.

    All of them run, in the order of their imports, when one is asked for a name or when a module of
    the package is imported that was not before: modules that import each other in circles work in
    the package's own order only. importlib.util.LazyLoader runs what the second `import` or
    `inspect` merely looks at.
    """

    def __init__(self, package: str, names: Collection[str]) -> None:
        self._prefix = package + "."
        self._names = names
        self._modules: list[ModuleType] = []  # as they were imported
        self._lock = RLock()  # guards all runs: who comes second waits for whole modules
        self._is_importing = False
        self._has_begun = False

    def __enter__(self) -> None:
        meta_path.insert(0, self)
        self._is_importing = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_importing = False
        if not self._modules:
            meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._is_importing:
            return self._deferred(fullname, path) if fullname in self._names else None
        # Whoever imports holds a lock that a run may need, so it waits for no other thread's run.
        if fullname.startswith(self._prefix) and self._lock.acquire(blocking=False):
            try:
                self._run_all()
            finally:
                self._lock.release()
        return None

    def run(self, module: ModuleType) -> None:
        """Runs all, or that module while others run."""
        with self._lock:
            self._run_all()
            _run(module)

    def add(self, module: ModuleType) -> None:
        self._modules.append(module)

    def _deferred(self, fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeferringLoader(self, spec.loader)
        return spec

    def _run_all(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        meta_path.remove(self)
        for module in self._modules:
            _run(module)


@dataclass(slots=True)
class _Part:
    """How a module that is deferred will run; it leaves the module when that has run."""

    parts: DeferredParts
    loader: Loader
    path: list[str] | None
    has_begun: bool = False


class _DeferredModule(ModuleType):
    """Has what import and inspect look at, and runs when it is asked for anything else."""

    def __getattr__(self, name: str) -> Any:
        part: _Part | None = vars(self).get(_PART)
        if part is not None:
            part.parts.run(self)
        return ModuleType.__getattribute__(self, name)  # its class is that one by now


class _DeferringLoader(Loader):
    def __init__(self, parts: DeferredParts, real: Loader) -> None:
        self._parts = parts
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # Whoever imports a submodule asks for the path, and finds that the package has run.
        path = vars(module).pop("__path__", None)
        vars(module)[_PART] = _Part(self._parts, self._real, path)
        self._parts.add(module)


def _run(module: ModuleType) -> None:
    part: _Part | None = vars(module).get(_PART)
    if part is None or part.has_begun:
        return
    part.has_begun = True
    if part.path is not None:
        module.__path__ = part.path
    if module.__spec__ is not None:
        module.__loader__ = module.__spec__.loader = part.loader
    try:
        part.loader.exec_module(module)
    except BaseException:
        part.has_begun = False
        raise
    del vars(module)[_PART]
    module.__class__ = ModuleType
