"""Makes a model's layers out of its weights, by their names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.kernels.port import Kernels, Norm, Product
from worker.layers.norm import RmsNorm
from worker.layers.row_parallel import RowParallel
from worker.models.config import ModelConfig
from worker.models.pack import Pack
from worker.parallel.group import Group
from worker.parallel.share import Cut, Share, kept_rows, whole
from worker.quantization.reader import WeightReader


@dataclass(frozen=True, slots=True)
class Slot:
    """A linear layer in the files: its name, without `.weight`, and what it gives.

    Of each of its `outputs`, which lie one below the other, this rank has a part.
    """

    name: str
    outputs: tuple[Cut, ...]
    has_bias: bool = False


class Parts:
    """Takes tensors from the files, checks their shapes, and hands them to the kernels."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightReader,
        kernels: Kernels,
        dtype: torch.dtype,
        group: Group,
        pack: Pack | None = None,
    ) -> None:
        """`dtype` is that of the embedding and of weights before they are packed.

        Raises Invalid for a model that cannot be divided among so many ranks.
        """
        self.config = config
        self.kernels = kernels
        self.dtype = dtype
        self.group = group
        self.share = share_of(config, group.rank, group.size)
        self.hidden = whole(config.hidden_size)
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

    @property
    def wants_rehearsal(self) -> bool:
        """Whether weights are rounded better when it is known what they will multiply.

        A rank alone has no result to go on with, and a GPU's kernels would have to be compiled.
        """
        is_packed = self._pack is not None and self._pack.found_bytes > 0
        is_alone_on_cpu = self.group.size == 1 and self.kernels.device.type == "cpu"
        return self._weights.rounds_to_four and is_alone_on_cpu and not is_packed

    def linear(
        self, slots: Sequence[Slot], inputs: Cut, importance: torch.Tensor | None = None
    ) -> Product:
        """One layer whose outputs are those of all slots, one after another.

        Where the inputs are divided, its result is the sum over all ranks. `importance` is what is
        known of the inputs: see `quantize`.
        """
        product = self._kept(slots, inputs, importance)
        return product if inputs.is_whole else RowParallel(product, self.group)

    def _kept(self, slots: Sequence[Slot], inputs: Cut, importance: torch.Tensor | None) -> Product:
        if self._pack is None:
            return self._made(slots, inputs, importance)
        name = "+".join(slot.name for slot in slots)
        if (state := self._pack.state(name)) is not None:
            return self.kernels.restore(state)
        product = self._made(slots, inputs, importance)
        self._pack.keep(name, product.state())
        return product

    def _made(self, slots: Sequence[Slot], inputs: Cut, importance: torch.Tensor | None) -> Product:
        layers = [(slot.name, slot.outputs) for slot in slots]
        weights = self._weights.linears(layers, inputs, self.dtype, importance)
        biases = [self._bias(slot, inputs) for slot in slots]
        return self.kernels.product(weights, biases)

    def _bias(self, slot: Slot, inputs: Cut) -> torch.Tensor | None:
        if not slot.has_bias or (self.group.rank > 0 and not inputs.is_whole):
            return None
        rows = kept_rows(slot.outputs)
        bias = self.tensor(f"{slot.name}.bias", (sum(cut.total for cut in slot.outputs),))
        return torch.cat([bias[each.start : each.stop] for each in rows])


def share_of(config: ModelConfig, rank: int, size: int) -> Share:
    """What a rank computes of the model; raises Invalid."""
    return Share.of(
        rank,
        size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        inner=config.intermediate_size,
        vocabulary=config.vocabulary,
    )
