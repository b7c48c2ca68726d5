"""The kernels for GPUs as a CPU runs them."""

import torch
from torch.nn.attention import flex_attention

from worker.kernels.flex_attention import Attend
from worker.kernels.gpu_kernels import GpuKernels

CPU = torch.device("cpu")


def eager(function: Attend, *, is_dynamic: bool) -> Attend:
    """As it is; FlexAttention compiles itself with every call unless it is told not to."""
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    return function


def flex_kernels(dtype: torch.dtype = torch.float32) -> GpuKernels:
    return GpuKernels(CPU, dtype, eager)
