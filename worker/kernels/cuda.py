"""What only a machine with a GPU runs."""

import torch

from worker.kernels.flex_attention import Attend
from worker.kernels.gpu_kernels import GpuKernels

# A step of each number of sequences is compiled anew, and torch gives up at 8 by itself.
_MOST_SHAPES = 64


def cuda_kernels(device: torch.device, dtype: torch.dtype) -> GpuKernels:
    """Kernels of one GPU."""
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    return GpuKernels(device, dtype, compile_for_cuda)


def compile_for_cuda(function: Attend, *, is_dynamic: bool) -> Attend:
    """See Compile."""
    compiled: Attend = torch.compile(function, fullgraph=True, dynamic=is_dynamic)
    return compiled
