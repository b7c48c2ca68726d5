"""Imports torch without what only training, quantising in torch and compiling need."""

import importlib
from importlib.util import find_spec
from pathlib import Path

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
    with DeferredParts("torch", DEFERRED if _is_installed(known_version) else ()):
        importlib.import_module("torch")


def _is_installed(version: str) -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    written = Path(spec.origin).with_name("version.py")  # the metadata takes 60 ms to read
    return written.is_file() and f"__version__ = '{version}'\n" in written.read_text()
