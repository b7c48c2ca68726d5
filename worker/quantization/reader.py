"""A model's weights in the format that they are computed with."""

from collections.abc import Sequence

import torch

from worker.parallel.share import Cut, kept_rows
from worker.quantization.published import is_quantized, read_quantized
from worker.quantization.quantize import quantize
from worker.quantization.scheme import Scheme
from worker.weights.loader import Weights
from worker.weights.quantized import Bits, QuantizedWeight

# Layers that 4 bits are enough for. Perplexity that each kind costs at 4 bits, of SmolLM2-135M with
# noise of a third of a step added: query 2.3 %, key 1.5, value 6.0, output 1.5, gate 1.4, up 2.9,
# down 4.8; all together 22.7 %, all at 8 bits 0.6 %. Gate and up cost least per byte by far.
_FOUR_BITS = (".gate_proj", ".up_proj", ".gate_up_proj")


def bits_of(name: str, rounding: Bits) -> Bits:
    """Bits of the linear layer `name` where weights are rounded to `rounding`."""
    return rounding if name.endswith(_FOUR_BITS) else 8


class WeightReader:
    """Tensors by name; linear layers are read as the checkpoint has them, or rounded.

    A layer that a quantised checkpoint left as floats stays so: whoever made it knew why. Rounding
    to 4 bits leaves most kinds of layers at 8 (`bits_of`): without data to calibrate on, that is
    what keeps the quality. Calibrated checkpoints (GPTQ, AWQ) keep their 4 bits everywhere.
    """

    def __init__(self, weights: Weights, scheme: Scheme | None, rounding: Bits | None) -> None:
        """`rounding` is what linear layers of an ordinary checkpoint are rounded to."""
        self._weights = weights
        self._scheme = scheme
        self._rounding = rounding

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Weights.take."""
        return self._weights.take(name, shape, dtype)

    def linear(
        self, name: str, outputs: Sequence[Cut], inputs: Cut, dtype: torch.dtype
    ) -> torch.Tensor | QuantizedWeight:
        """The kept part of the weight of the layer `name`, [outputs, inputs]; floats in `dtype`.

        Of floats no more is read; what is rounded here has the scales of the part, not of the
        whole. Raises SourceInvalid when the weight is missing or has another shape.
        """
        shape, rows = (sum(cut.total for cut in outputs), inputs.total), kept_rows(outputs)
        if self._scheme is not None and is_quantized(self._weights, self._scheme, name):
            stored = read_quantized(self._weights, self._scheme, name, shape)
            is_whole = inputs.is_whole and all(cut.is_whole for cut in outputs)
            return stored if is_whole else stored.part(rows, inputs.kept)
        weight = self._weights.part(f"{name}.weight", shape, rows, inputs.kept, dtype)
        if self._scheme is not None or self._rounding is None:
            return weight
        return quantize(weight, bits_of(name, self._rounding))
