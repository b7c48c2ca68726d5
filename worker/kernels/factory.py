"""Chooses the kernels for what a replica was given to run on."""

from functools import cache

import structlog
import torch

from infra.errors import DependencyMissing
from worker.kernels.native.library import NativeLibrary, NoNativeKernels, load
from worker.kernels.native_kernels import NativeKernels, attends_heads
from worker.kernels.port import Kernels
from worker.kernels.torch_kernels import TorchKernels

log = structlog.get_logger()


def choose_kernels(*, gpus: int, dtype: torch.dtype, head_dim: int) -> Kernels:
    """Kernels of the one GPU that this process sees, or of the CPU for no GPUs.

    `dtype` is that of the weights, `head_dim` the channels of an attention head.

    The native kernels know no float32 weights, nor heads of any width; torch's do all that they
    cannot.

    Raises DependencyMissing when a GPU is asked for and torch sees none.
    """
    if gpus == 0:
        library = native_library() if dtype is torch.bfloat16 else None
        if library is None or not _attends(head_dim):
            return TorchKernels(dtype)
        return NativeKernels(library)
    if not torch.cuda.is_available():
        raise DependencyMissing(
            "the model asks for a GPU and torch finds none",
            hint="install torch with CUDA, or set resources.gpus to 0",
        )
    from worker.kernels.cuda import cuda_kernels  # it imports torch's compiler: a second

    return cuda_kernels(torch.device("cuda", 0), dtype)


@cache
def native_library() -> NativeLibrary | None:
    """The native kernels, or none, which is said once."""
    try:
        return load()
    except NoNativeKernels as why:
        log.warning("kernels.slow", why=str(why), hint=why.hint, instead="torch")
        return None


@cache
def _attends(head_dim: int) -> bool:
    """Whether the native kernels know such heads; where they do not, that is said once."""
    if attends_heads(head_dim):
        return True
    log.warning("kernels.slow", why=f"heads have {head_dim} channels", instead="torch")
    return False
