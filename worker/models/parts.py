"""Makes a model's layers out of its weights, by their names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.kernels.port import Kernels, Norm, Product
from worker.layers.norm import RmsNorm
from worker.models.config import ModelConfig
from worker.models.pack import Pack
from worker.quantization.reader import WeightReader


@dataclass(frozen=True, slots=True)
class Slot:
    """A linear layer in the files: its name, without `.weight`, and what it gives."""

    name: str
    outputs: int
    has_bias: bool = False


class Parts:
    """Takes tensors from the files, checks their shapes, and hands them to the kernels."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightReader,
        kernels: Kernels,
        dtype: torch.dtype,
        pack: Pack | None = None,
    ) -> None:
        """`dtype` is that of the embedding and of weights before they are packed."""
        self.config = config
        self.kernels = kernels
        self.dtype = dtype
        self._weights = weights
        self._pack = pack

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._weights.take(name, shape, self.dtype).to(self.kernels.device)

    def norm_weight(self, name: str, channels: int) -> Norm:
        weight = self._weights.take(f"{name}.weight", (channels,), torch.float32)
        weight = weight + self.config.norm_offset if self.config.norm_offset else weight
        return Norm(weight.to(self.kernels.device), self.config.rms_norm_epsilon)

    def norm(self, name: str) -> RmsNorm:
        return RmsNorm(self.kernels, self.norm_weight(name, self.config.hidden_size))

    def linear(self, slots: Sequence[Slot], inputs: int) -> Product:
        """One layer whose outputs are those of all slots, one after another."""
        if self._pack is None:
            return self._made(slots, inputs)
        name = "+".join(slot.name for slot in slots)
        if (state := self._pack.state(name)) is not None:
            return self.kernels.restore(state)
        product = self._made(slots, inputs)
        self._pack.keep(name, product.state())
        return product

    def _made(self, slots: Sequence[Slot], inputs: int) -> Product:
        weights = [
            self._weights.linear(slot.name, (slot.outputs, inputs), self.dtype) for slot in slots
        ]
        biases = [
            self.tensor(f"{slot.name}.bias", (slot.outputs,)) if slot.has_bias else None
            for slot in slots
        ]
        return self.kernels.product(weights, biases)
