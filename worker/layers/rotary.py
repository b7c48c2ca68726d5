"""Rotary position embedding: each position's angles."""

import torch

from worker.kernels.port import Angles

_PAGE = 1024  # positions


class Rotary:
    """A table of angles, so that a position's are the same bits wherever they are used.

    It grows by pages with the positions asked for: a long context costs nothing until it is used.
    """

    def __init__(self, frequencies: torch.Tensor) -> None:
        """`frequencies` float32 [head_dim / 2], in radians a position."""
        self._frequencies = frequencies
        self._cos, self._sin = self._page(0)

    def at(self, positions: torch.Tensor, *, end: int) -> Angles:
        """The angles of the positions [tokens], all of which are below `end`."""
        while self._cos.shape[0] < end:
            cos, sin = self._page(self._cos.shape[0])
            self._cos, self._sin = torch.cat((self._cos, cos)), torch.cat((self._sin, sin))
        return Angles(self._cos.index_select(0, positions), self._sin.index_select(0, positions))

    def _page(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Each [page, 1, head_dim]"""
        device = self._frequencies.device
        positions = torch.arange(start, start + _PAGE, dtype=torch.float32, device=device)
        angles = torch.outer(positions, self._frequencies)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), 1).unsqueeze(1), torch.cat((-sin, sin), 1).unsqueeze(1)
