"""Head norms and rotation in plain torch."""

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from worker.kernels.port import Norm


def normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """Each head of [tokens, heads, head_dim] by itself."""
    if norm is None:
        return x
    return F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.epsilon).to(x.dtype)


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [tokens, heads, head_dim] by [tokens, rotary_dim], in float32."""
    rotary_dim = angles.shape[-1]
    cos, sin = angles.unsqueeze(1).chunk(2, -1)
    turned, kept = x[..., :rotary_dim], x[..., rotary_dim:]
    swapped = torch.roll(turned, rotary_dim // 2, -1)
    turned = turned * torch.cat((cos, cos), -1) + swapped * torch.cat((-sin, sin), -1)
    return torch.cat((turned.to(x.dtype), kept), -1)
