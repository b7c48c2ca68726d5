"""Rounding to 8 bits: one scale for each output."""

import torch

from worker.weights.quantized import INT8_MOST, QuantizedWeight

_CHUNK_NUMBERS = 1 << 17  # floats that stay in a core's cache


def quantize_int8(weight: torch.Tensor) -> QuantizedWeight:
    """Symmetric: the largest magnitude of a row becomes 127. A row of zeros has the scale 1."""
    outputs, inputs = weight.shape
    codes = torch.empty((outputs, inputs), dtype=torch.int8)
    scale = torch.empty((outputs, 1))
    rows = max(1, _CHUNK_NUMBERS // inputs)
    for start in range(0, outputs, rows):
        x = weight[start : start + rows].to(torch.float32)  # [rows, inputs]
        step = x.abs().amax(1, keepdim=True).div_(INT8_MOST)
        step[step == 0] = 1
        codes[start : start + rows] = (x / step).round_().clamp_(-INT8_MOST, INT8_MOST)
        scale[start : start + rows] = step
    return QuantizedWeight(8, codes, scale, None)
