"""Root mean square normalisation."""

import torch

from worker.kernels.port import Kernels


class RmsNorm:
    """Scales each token to a root mean square of 1, then by a weight a channel."""

    def __init__(self, kernels: Kernels, weight: torch.Tensor, epsilon: float) -> None:
        self._kernels = kernels
        self._weight = weight
        self._epsilon = epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to the same"""
        return self._kernels.rms_norm(x, self._weight, self._epsilon)
