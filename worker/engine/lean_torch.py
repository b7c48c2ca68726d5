"""Imports torch without what only training, quantising in torch and compiling need."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

from worker.engine.deferred_modules import DeferredParts

# Without these `import torch` takes 0.26 s less of 0.9, and 250 modules fewer. They run when one of
# them is asked for a name, or another module of torch is imported. Two things alone do not make
# them run: the meta device lacks what torch._meta_registrations registers, and torch.Generator()
# says that it wants torch._prims.rng_prims imported.
DEFERRED = (
    "torch._meta_registrations",  # shapes without numbers: who traces asks for them
    "torch.ao",
    "torch.distributions",
    "torch.masked",
    "torch.nested",
    "torch.nn.intrinsic",
    "torch.nn.qat",
    "torch.nn.quantizable",
    "torch.nn.quantized",
    "torch.optim",
    "torch.profiler",
    "torch.quantization",
    "torch.utils.data",
)

# Where it is tested that torch imports without these, computes, and that each runs later. What
# computes on a GPU may compile, so builds for one are imported whole.
KNOWN_VERSION = "2.13.0+cpu"


def import_torch(known_version: str = KNOWN_VERSION) -> None:
    """Imports torch if nobody has; another version than the known one, whole."""
    is_known = folder_of_torch(known_version) is not None
    with DeferredParts("torch", DEFERRED if is_known else ()), _frames_at_hand():
        importlib.import_module("torch")


def folder_of_torch(version: str = KNOWN_VERSION) -> Path | None:
    """Where torch will be imported from; None where it is another version."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    written = folder / "version.py"  # the metadata takes 60 ms to read
    if written.is_file() and f"__version__ = '{version}'\n" in written.read_text():
        return folder
    return None


@contextmanager
def _frames_at_hand() -> Iterator[None]:
    """Torch wants to know twice who calls it from where, and inspect looks for it in the files of
    all modules there are, which takes 45 ms; a frame knows.
    """
    whole, find_module = inspect.getframeinfo, inspect.getmodule

    def without_text(frame: FrameType | TracebackType, context: int = 0) -> inspect.Traceback:
        return whole(frame, 0)

    def module_of(asked: Any, _filename: str | None = None) -> ModuleType | None:
        if isinstance(asked, FrameType):
            module = sys.modules.get(asked.f_globals.get("__name__", ""))
            if module is not None and vars(module) is asked.f_globals:
                return module
        return find_module(asked, _filename)

    inspect.getframeinfo = without_text
    inspect.getmodule = module_of  # type: ignore[assignment]  # theirs is called `object`
    try:
        yield
    finally:
        inspect.getframeinfo, inspect.getmodule = whole, find_module
