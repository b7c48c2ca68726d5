"""Recording what a function does on a device, so that it can be done again without Python."""

from collections.abc import Callable
from typing import Protocol

import torch

Compute = Callable[[], torch.Tensor]


class Capture(Protocol):
    """Records a function of no arguments: one that reads and writes tensors where they lie."""

    def __call__(self, compute: Compute) -> Compute:
        """A replay of `compute`, over whatever those tensors hold by then.

        `compute` may be called any number of times here. The result of a replay is valid until
        the next one of anything that was recorded.
        """
        ...


def capture_nothing(compute: Compute) -> Compute:
    """Calls the function each time."""
    return compute
