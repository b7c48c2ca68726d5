"""Root mean square normalisation."""

import torch

from worker.kernels.port import Kernels, Norm


class RmsNorm:
    """Scales each token to a root mean square of 1, then by a weight a channel.

    Before a linear layer it is done as that layer's prologue; by itself it is called.
    """

    def __init__(self, kernels: Kernels, norm: Norm) -> None:
        self._kernels = kernels
        self.prologue = norm

    def __call__(self, x: torch.Tensor, *, residual: torch.Tensor | None = None) -> torch.Tensor:
        """[tokens, hidden] to the same"""
        return self._kernels.norm(x, self.prologue, residual=residual)
