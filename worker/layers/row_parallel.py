"""A product whose inputs are divided among the ranks of a group."""

from collections.abc import Mapping

import torch

from worker.kernels.port import Gate, Product, Prologue
from worker.parallel.group import Group


class RowParallel:
    """Every rank multiplies what it has; the sum is the product (see Product).

    One rank adds the residual, and has the bias.
    """

    def __init__(self, product: Product, group: Group) -> None:
        self._product = product
        self._group = group

    def __call__(
        self,
        x: torch.Tensor,
        *,
        prologue: Prologue = None,
        gate: Gate | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert gate is None, "a part of a sum is not gated"
        mine = residual if self._group.rank == 0 else None
        return self._group.add_up(self._product(x, prologue=prologue, residual=mine))

    def state(self) -> Mapping[str, torch.Tensor]:
        return self._product.state()
