"""Quantised checkpoints as others publish them, packed number by number after their documents."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from worker.weights.loader import Weights, open_weights

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Ints = NDArray[np.int64]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """One layer as its quantiser knows it: what every layout is packed from."""

    codes: Ints  # [outputs, inputs], from 0 on
    scale: NDArray[np.float32]  # [outputs, groups]
    zero: Ints  # [outputs, groups]
    group_of: Ints  # [inputs]

    def values(self) -> torch.Tensor:
        rows = np.arange(self.codes.shape[0])[:, None]
        columns = self.group_of[None]
        values = (self.codes - self.zero[rows, columns]) * self.scale[rows, columns]
        return torch.from_numpy(values.astype(np.float32))


def random_layer(
    outputs: int,
    inputs: int,
    *,
    bits: int = 4,
    group_size: int | None = 32,
    symmetric: bool = False,
    in_order: bool = True,
    seed: int = 0,
) -> Layer:
    random = np.random.default_rng(seed)
    size = group_size or inputs
    groups = inputs // size
    most = (1 << bits) - 1
    zero = random.integers(1, most + 1, (outputs, groups))
    group_of = np.arange(inputs) // size
    return Layer(
        codes=random.integers(0, most + 1, (outputs, inputs)),
        scale=random.uniform(0.005, 0.02, (outputs, groups)).astype(np.float16).astype(np.float32),
        zero=np.full_like(zero, 1 << (bits - 1)) if symmetric else zero,
        group_of=group_of if in_order else random.permutation(group_of),
    )


def words(numbers: Ints, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Packs along the last dimension; the n-th place of a word is the number `order[n]` of it."""
    each = 32 // bits
    rows, columns = numbers.shape
    padded = np.zeros((rows, -(-columns // each) * each), np.int64)
    padded[:, :columns] = numbers
    packed = np.zeros((rows, padded.shape[1] // each), np.int64)
    for place in range(each):
        packed |= padded[:, (place if order is None else order[place]) :: each] << (bits * place)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32))


def int_quantized(name: str, layer: Layer) -> Tensors:
    return {
        f"{name}.weight": torch.from_numpy((layer.codes - 128).astype(np.int8)),
        f"{name}.weight_scale": torch.from_numpy(layer.scale),
        f"{name}.weight_zero_point": torch.from_numpy((layer.zero - 128).astype(np.int8)),
    }


def pack_quantized(name: str, layer: Layer, bits: int = 4) -> Tensors:
    return {
        f"{name}.weight_packed": words(layer.codes, bits),
        f"{name}.weight_scale": torch.from_numpy(layer.scale),
        f"{name}.weight_shape": torch.tensor(layer.codes.shape),
        f"{name}.weight_zero_point": words(layer.zero.T, bits).T.contiguous(),
        f"{name}.weight_g_idx": torch.from_numpy(layer.group_of.astype(np.int32)),
    }


def gptq(name: str, layer: Layer, bits: int = 4, *, less_one: bool = True) -> Tensors:
    stored_zero = (layer.zero - less_one) & ((1 << bits) - 1)
    return {
        f"{name}.qweight": words(layer.codes, bits).T.contiguous(),
        f"{name}.qzeros": words(stored_zero.T, bits),
        f"{name}.scales": torch.from_numpy(layer.scale.T.astype(np.float16)),
        f"{name}.g_idx": torch.from_numpy(layer.group_of.astype(np.int32)),
    }


def awq(name: str, layer: Layer) -> Tensors:
    return {
        f"{name}.qweight": words(layer.codes.T, 4, AWQ_ORDER),
        f"{name}.qzeros": words(layer.zero.T, 4, AWQ_ORDER),
        f"{name}.scales": torch.from_numpy(layer.scale.T.astype(np.float16)),
    }


def stored(folder: Path, tensors: Tensors) -> Weights:
    """The tensors written and mapped again."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    return open_weights(folder, lambda fraction: None)
