"""A model's weights in the format that they are computed with."""

import torch

from worker.quantization.published import is_quantized, read_quantized
from worker.quantization.quantize import quantize
from worker.quantization.scheme import Scheme
from worker.weights.loader import Weights
from worker.weights.quantized import Bits, QuantizedWeight

# A row for each token of the vocabulary: the output layer, and the embedding where it is the same.
_VOCABULARY = frozenset({"lm_head", "model.embed_tokens"})


class WeightReader:
    """Tensors by name; linear layers are read as the checkpoint has them, or rounded.

    A layer that a quantised checkpoint left as floats stays so: whoever made it knew why. The
    output layer is never rounded to less than 8 bits: 4 cost as much quality there as in all
    other layers together.
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
        self, name: str, shape: tuple[int, int], dtype: torch.dtype
    ) -> torch.Tensor | QuantizedWeight:
        """The weight of the layer `name`, [outputs, inputs]; floats come in `dtype`.

        Raises SourceInvalid when it is missing or has another shape.
        """
        if self._scheme is not None and is_quantized(self._weights, self._scheme, name):
            return read_quantized(self._weights, self._scheme, name, shape)
        weight = self._weights.take(f"{name}.weight", shape, dtype)
        if self._scheme is not None or self._rounding is None:
            return weight
        return quantize(weight, 8 if name in _VOCABULARY else self._rounding)
