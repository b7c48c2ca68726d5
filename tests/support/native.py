"""The native kernels where they are built: elsewhere tests of them skip, and fail in CI."""

import os

import pytest

from worker.kernels.native.library import NoNativeKernels, instruction_sets, load

try:
    load()
except NoNativeKernels as error:
    _WHY = str(error)
    INSTRUCTION_SETS: tuple[str, ...] = ("none",)
else:
    _WHY = ""
    INSTRUCTION_SETS = instruction_sets()

if _WHY and os.environ.get("CI"):  # noqa: TID251 - says whether this is CI
    raise RuntimeError(f"no native kernels: {_WHY}")

native = pytest.mark.skipif(bool(_WHY), reason=f"no native kernels: {_WHY}")
