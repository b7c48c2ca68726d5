"""Rotary position embedding: each position's angles."""

import torch

_PAGE = 1024  # positions


class Rotary:
    """A table of angles, so that a position's are the same bits wherever they are used.

    It grows by pages with the positions asked for: a long context costs nothing until it is used.
    """

    def __init__(self, frequencies: torch.Tensor, *, magnitude: float = 1.0) -> None:
        """`frequencies` float32 [rotary_dim / 2], in radians a position.

        Cosines and sines are scaled by `magnitude`.
        """
        self._frequencies = frequencies
        self._magnitude = magnitude
        self._table = self._page(0)

    def up_to(self, end: int) -> torch.Tensor:
        """Cosines, then sines, of all positions below `end` and perhaps of more.

        float32 [positions, rotary_dim]
        """
        while self._table.shape[0] < end:
            self._table = torch.cat((self._table, self._page(self._table.shape[0])))
        return self._table

    def _page(self, start: int) -> torch.Tensor:
        device = self._frequencies.device
        positions = torch.arange(start, start + _PAGE, dtype=torch.float32, device=device)
        angles = torch.outer(positions, self._frequencies)
        return torch.cat((angles.cos(), angles.sin()), 1) * self._magnitude
