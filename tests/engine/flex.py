"""The kernels for GPUs as a CPU runs them, and a recording that is like a GPU's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worker.kernels.flex_attention import Attend
from worker.kernels.gpu_kernels import GpuKernels
from worker.kernels.recording import Capture, Compute, capture_nothing
from worker.models.config import read_config
from worker.models.decoder import Decoder
from worker.models.recorded import RecordedModel
from worker.parallel.group import ALONE
from worker.quantization.reader import WeightReader
from worker.weights.loader import open_weights

CPU = torch.device("cpu")


def eager(function: Attend, *, is_dynamic: bool) -> Attend:
    """As it is; FlexAttention compiles itself with every call unless it is told not to."""
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    return function


def flex_kernels(
    dtype: torch.dtype = torch.float32, *, free_bytes: int | None = None
) -> GpuKernels:
    return GpuKernels(CPU, dtype, eager, capture_nothing, lambda: free_bytes)


def flex_model(
    folder: Path, capture: Capture = capture_nothing, *, free_bytes: int | None = None
) -> RecordedModel:
    """The model in that folder in float32, as on a GPU."""
    config = read_config(folder)
    with torch.inference_mode():
        decoder = Decoder(
            config,
            WeightReader(open_weights(folder, lambda fraction: None), config.scheme, None),
            flex_kernels(free_bytes=free_bytes),
            dtype=torch.float32,
            kv_dtype=torch.float32,
            context_tokens=config.context_tokens,
            group=ALONE,
        )
    return RecordedModel(decoder, capture)


class Tape:
    """See Capture. A replay does every operation again on the same memory, as CUDA's graphs do.

    Whatever Python decided while it was recorded stays as it was.
    """

    def __init__(self) -> None:
        self.num_recordings = 0
        self.num_replays = 0

    def __call__(self, compute: Compute) -> Compute:
        self.num_recordings += 1
        recorder = _Recorder()
        with recorder:
            result = compute()

        def replay() -> torch.Tensor:
            self.num_replays += 1
            for function, arguments, options, old in recorder.operations:
                new = function(*arguments, **options)
                for before, after in zip(tree_leaves(old), tree_leaves(new), strict=True):
                    if isinstance(before, torch.Tensor) and before.data_ptr() != after.data_ptr():
                        before.copy_(after)
            return result

        return replay


class _Recorder(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result
