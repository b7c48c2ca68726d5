"""Which GPU this process sees: one or none, for its whole life."""

import os
import sys
from collections.abc import Sequence

from infra.contracts.base import GpuId

_VARIABLE = "CUDA_VISIBLE_DEVICES"


def see_only(gpus: Sequence[GpuId]) -> None:
    """CUDA finds these GPUs and no others, here and in what this process starts.

    CUDA reads the variable once, when it is first asked for something, which importing torch does
    not. A process that wakes sees what it saw before; another assignment could not reach it.
    """
    seen = ",".join(gpus)
    torch = sys.modules.get("torch")  # if nobody has imported it, nothing has begun
    has_begun = torch is not None and torch.cuda.is_initialized()
    if has_begun and os.environ.get(_VARIABLE) != seen:  # noqa: TID251
        raise RuntimeError("CUDA was asked for something before its GPUs were assigned")
    os.environ[_VARIABLE] = seen  # noqa: TID251 - CUDA listens here only
