"""A model's weights in the format that they are computed with."""

from collections.abc import Sequence

import torch

from worker.parallel.share import Cut, kept_rows
from worker.quantization.bits import bits_of
from worker.quantization.published import is_quantized, read_quantized
from worker.quantization.quantize import quantize
from worker.quantization.scheme import Scheme
from worker.weights.loader import Weights
from worker.weights.quantized import Bits, QuantizedWeight


class WeightReader:
    """Tensors by name; linear layers are read as the checkpoint has them, or rounded.

    A layer that a quantised checkpoint left as floats stays so: whoever made it knew why. Rounding
    to 4 bits leaves layers at 8 that it would hurt (`bits_of`). Calibrated checkpoints (GPTQ, AWQ)
    keep their 4 bits everywhere.
    """

    def __init__(self, weights: Weights, scheme: Scheme | None, rounding: Bits | None) -> None:
        """`rounding` is what linear layers of an ordinary checkpoint are rounded to."""
        self._weights = weights
        self._scheme = scheme
        self._rounding = rounding

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Weights.take."""
        return self._weights.take(name, shape, dtype)

    @property
    def rounds_to_four(self) -> bool:
        """Whether layers may be rounded to 4 bits here, where it helps to know their inputs."""
        return self._scheme is None and self._rounding == 4

    def linears(
        self,
        layers: Sequence[tuple[str, Sequence[Cut]]],
        inputs: Cut,
        dtype: torch.dtype,
        importance: torch.Tensor | None = None,
    ) -> list[torch.Tensor | QuantizedWeight]:
        """The kept parts of the weights of layers that one product computes; floats in `dtype`.

        A layer is its name and its outputs: a weight is [outputs, inputs]. Of floats no more is
        read; what is rounded here has the scales of the part, not of the whole, and `importance`
        says what is known of the inputs (see `quantize`). Raises SourceInvalid when a weight is
        missing or has another shape.
        """
        found = [self._stored(name, outputs, inputs, dtype) for name, outputs in layers]
        if self._scheme is not None or self._rounding is None:
            return found
        floats = [weight for weight in found if isinstance(weight, torch.Tensor)]
        bits = bits_of([name for name, _ in layers], floats, self._rounding)
        return [quantize(weight, bits, importance) for weight in floats]

    def _stored(
        self, name: str, outputs: Sequence[Cut], inputs: Cut, dtype: torch.dtype
    ) -> torch.Tensor | QuantizedWeight:
        shape, rows = (sum(cut.total for cut in outputs), inputs.total), kept_rows(outputs)
        if self._scheme is not None and is_quantized(self._weights, self._scheme, name):
            stored = read_quantized(self._weights, self._scheme, name, shape)
            is_whole = inputs.is_whole and all(cut.is_whole for cut in outputs)
            return stored if is_whole else stored.part(rows, inputs.kept)
        return self._weights.part(f"{name}.weight", shape, rows, inputs.kept, dtype)
