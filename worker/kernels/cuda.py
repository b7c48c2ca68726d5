"""What only a machine with a GPU runs."""

import torch

from worker.kernels.flex_attention import Attend
from worker.kernels.gpu_kernels import GpuKernels
from worker.kernels.recording import Compute

# A step of each number of sequences is compiled anew, and torch gives up at 8 by itself.
_MOST_SHAPES = 64


def cuda_kernels(device: torch.device, dtype: torch.dtype) -> GpuKernels:
    """Kernels of one GPU."""
    torch._dynamo.config.recompile_limit = _MOST_SHAPES

    def read_free_bytes() -> int:
        return torch.cuda.mem_get_info(device)[0]

    return GpuKernels(device, dtype, compile_for_cuda, CudaGraphs(device), read_free_bytes)


def compile_for_cuda(function: Attend, *, is_dynamic: bool) -> Attend:
    """See Compile."""
    compiled: Attend = torch.compile(function, fullgraph=True, dynamic=is_dynamic)
    return compiled


class CudaGraphs:
    """See Capture. Graphs share their memory: no two are replayed at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        with torch.cuda.device(self._device):
            self._warm_up(compute)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    def _warm_up(self, compute: Compute) -> None:
        """Compiles and loads whatever is used for the first time: that cannot be recorded."""
        ours = torch.cuda.current_stream()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(ours)
        with torch.cuda.stream(side):
            compute()
        ours.wait_stream(side)
