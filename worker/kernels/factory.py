"""Chooses the kernels for what a replica was given to run on."""

import torch

from infra.errors import DependencyMissing
from worker.kernels.port import Kernels
from worker.kernels.torch_kernels import TorchKernels


def choose_kernels(*, gpus: int, dtype: torch.dtype) -> Kernels:
    """Kernels of the first GPU, or of the CPU for none; `dtype` is that of the weights.

    Raises DependencyMissing when a GPU is asked for and torch sees none.
    """
    if gpus == 0:
        return TorchKernels(torch.device("cpu"), dtype)
    if not torch.cuda.is_available():
        raise DependencyMissing(
            "the model asks for a GPU and torch finds none",
            hint="install torch with CUDA, or set resources.gpus to 0",
        )
    return TorchKernels(torch.device("cuda", 0), dtype)
