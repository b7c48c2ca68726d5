"""Loads the native kernels, or says why there are none."""

from dataclasses import dataclass

import torch

from worker.kernels.native.build import library_path

LAYOUT = "1"  # of packed weights (linear.h)
_HINT = "run scripts/install"


@dataclass(frozen=True, slots=True)
class NativeLibrary:
    """The operators of `torch.ops.firstlight`, with what this CPU does them."""

    instruction_set: str
    layout: str = LAYOUT


class NoNativeKernels(Exception):
    """Why the library cannot be used; `hint` says what would help, if anything."""

    def __init__(self, reason: str, *, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


def load() -> NativeLibrary:
    """Loads the operators, once; starts no thread. Raises NoNativeKernels.

    Uses the best instruction set that the CPU has.
    """
    path = library_path()
    if not path.exists():
        raise NoNativeKernels("the native kernels are not built for this version", hint=_HINT)
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise NoNativeKernels(f"the native kernels do not load: {error}", hint=_HINT) from error
    sets = instruction_sets()
    if not sets:
        raise NoNativeKernels("this CPU has no AVX2")
    return NativeLibrary(sets[0])


def instruction_sets() -> tuple[str, ...]:
    """Those of the loaded library that the CPU has, best first."""
    names: str = torch.ops.firstlight.instruction_sets.default()
    return tuple(names.split())


def use_instruction_set(name: str) -> None:
    """For tests: kernels of this set from now on, in the whole process."""
    torch.ops.firstlight.use_instruction_set.default(name)
