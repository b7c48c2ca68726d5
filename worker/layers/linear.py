"""A linear layer; behind this class weights may be kept in other formats."""

import torch

from worker.kernels.port import Product, Prologue


class Linear:
    """x W^T + b, with what goes before and after it in the same pass over the tokens."""

    def __init__(self, product: Product) -> None:
        self._product = product

    def __call__(
        self,
        x: torch.Tensor,
        *,
        prologue: Prologue = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[tokens, in], or [tokens, 2 * in] before a gate, to [tokens, out]"""
        return self._product(x, prologue=prologue, residual=residual)
