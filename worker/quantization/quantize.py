"""Float weights rounded to 8 or 4 bits."""

import torch

from worker.quantization.int4 import quantize_int4
from worker.quantization.int8 import quantize_int8
from worker.weights.quantized import Bits, QuantizedWeight

# Changes whenever rounding gives other codes: nodes keep what it gave, packed.
ALGORITHM = 2


def quantize(weight: torch.Tensor, bits: Bits) -> QuantizedWeight:
    """The nearest `QuantizedWeight` to [outputs, inputs] of finite floats, whatever their type."""
    return quantize_int8(weight) if bits == 8 else quantize_int4(weight)
