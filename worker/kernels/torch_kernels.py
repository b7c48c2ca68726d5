"""The kernels in plain torch, row-invariant by measurement and by test.

What was found (torch 2.13, x86 from AVX2 to AVX512-FP16), and how it is heeded:

- oneDNN's inner product gives a row the same bits among however many rows, from 2 rows on: of a
  single row threads or vectors may share the sum, so it goes twice. `F.linear` leads to oneDNN's
  matrix product, to MKL or to a plain loop, and of these only the loop (bfloat16 without AVX512)
  will do.
- oneDNN compiles a kernel for each height of a product and keeps 1,024 of them, a quarter of a
  megabyte each, so heights are rounded up.
- Exponentials at the end of an array are computed one by one, by another formula than vectors of
  them. Of SiLU in bfloat16 both round to the same number, for every input; everything else goes
  in float32 and in whole vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from infra.errors import SourceInvalid
from worker.kernels import torch_sampling
from worker.kernels.port import (
    CacheShape,
    Gate,
    Layers,
    Norm,
    Product,
    Prologue,
)
from worker.kernels.sampling import Draw, LogProbability, Unchosen
from worker.kernels.torch_attention import TorchKVCache
from worker.weights.quantized import QuantizedWeight

_MOST_TOKENS = 256  # of one sequence in one call: bounds the mask's memory
_VECTOR = 16  # float32 numbers
_SERIAL = 16_384  # numbers up to which torch does not divide an elementwise function

_ACTIVATIONS: dict[Gate, Callable[[torch.Tensor], torch.Tensor]] = {
    Gate.SILU: F.silu,
    Gate.GELU_TANH: partial(F.gelu, approximate="tanh"),
}


class TorchKernels:
    """See Kernels. For the CPU."""

    name = "torch"
    layout = None
    capture = None
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype) -> None:
        """`dtype` of weights, activations, keys and values."""
        self.activation_dtype = dtype
        self._has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

    def product(
        self,
        parts: Sequence[torch.Tensor | QuantizedWeight],
        biases: Sequence[torch.Tensor | None],
    ) -> Product:
        return TorchProduct(self, [self._plain(part) for part in parts], list(biases))

    def restore(self, state: Mapping[str, torch.Tensor]) -> Product:
        raise SourceInvalid("torch's kernels pack no weights")

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor, scale: float) -> torch.Tensor:
        rows = F.embedding(token_ids, table).to(self.activation_dtype)
        return rows if scale == 1 else rows * torch.tensor(scale, dtype=rows.dtype)

    def norm(
        self, x: torch.Tensor, norm: Norm, *, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        normed = F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.epsilon).to(x.dtype)
        return normed if residual is None else residual + normed

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """[tokens, in] and [out, in] to [tokens, out]"""
        if not (self._has_avx512 or x.dtype is torch.float32):
            return F.linear(x, weight, bias)
        rows = x.shape[0]
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
            padded(x), weight, bias, "none", [], ""
        )
        return product[:rows]

    def gated(self, x: torch.Tensor, gate: Gate) -> torch.Tensor:
        """[tokens, 2 * inner] to [tokens, inner]"""
        gates, up = x.chunk(2, -1)
        if gate is Gate.SILU and x.dtype is torch.bfloat16:
            return F.silu(gates.contiguous()).mul_(up)
        activated = _in_whole_vectors(_ACTIVATIONS[gate], gates.float().contiguous())
        return activated.to(x.dtype).mul_(up)

    def compile(self, layers: Layers) -> Layers:
        return layers

    def free_bytes(self) -> None:
        return None

    def cache_bytes(self, shape: CacheShape) -> int:
        numbers = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * shape.block_size
        return numbers * self.activation_dtype.itemsize

    def allocate_cache(self, shape: CacheShape) -> TorchKVCache:
        return TorchKVCache(
            shape,
            dtype=self.activation_dtype,
            most_tokens=_MOST_TOKENS if self._has_avx512 else 1,
        )

    def choose(
        self, logits: torch.Tensor, draws: Sequence[Draw], masks: torch.Tensor | None
    ) -> list[int | Unchosen]:
        return torch_sampling.choose(logits, draws, masks)

    def log_probabilities(
        self, logits: torch.Tensor, rows: Sequence[int], token_ids: Sequence[int], count: int
    ) -> list[LogProbability]:
        return torch_sampling.log_probabilities(logits, rows, token_ids, count)

    def _plain(self, part: torch.Tensor | QuantizedWeight) -> torch.Tensor:
        weight = part.dequantise() if isinstance(part, QuantizedWeight) else part
        return weight.to(self.activation_dtype)


class TorchProduct:
    """See Product. Parts stay apart: they are views of the files, and no copy is made."""

    def __init__(
        self,
        kernels: TorchKernels,
        weights: list[torch.Tensor],
        biases: list[torch.Tensor | None],
    ) -> None:
        self._kernels = kernels
        self._parts = [
            (weight, None if bias is None else bias.to(weight))
            for weight, bias in zip(weights, biases or [None] * len(weights), strict=True)
        ]

    def __call__(
        self,
        x: torch.Tensor,
        *,
        prologue: Prologue = None,
        gate: Gate | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if prologue is not None:
            x = self._kernels.norm(x, prologue)
        products = [self._kernels.linear(x, *part) for part in self._parts]
        product = torch.cat(products, -1) if len(products) > 1 else products[0]
        if gate is not None:
            product = self._kernels.gated(product, gate)
        return product if residual is None else residual + product

    def state(self) -> Mapping[str, torch.Tensor]:
        return {}


def padded(x: torch.Tensor) -> torch.Tensor:
    """With rows of zeros behind, so that there are few heights of products, and never one row."""
    rows = x.shape[0]
    step = 1 if rows <= 16 else 4 if rows <= 64 else 16
    missing = 1 if rows == 1 else -rows % step
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def _in_whole_vectors(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    inner = x.shape[1]
    rows = 1 if inner % _VECTOR else max(1, _SERIAL // inner)
    return torch.cat([function(part) for part in torch.split(x, rows)])
