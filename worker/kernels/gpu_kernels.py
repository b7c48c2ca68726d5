"""The kernels for a GPU: torch's own operators, and its FlexAttention compiled for the device.

A result depends on the shapes of a step here, as libraries choose their algorithms by them: row
invariance holds within steps of one shape, which is not promised either, and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from infra.errors import Invalid, SourceInvalid, UnsupportedModel
from worker.kernels import torch_sampling
from worker.kernels.flex_attention import Compile, FlexKVCache
from worker.kernels.port import CacheShape, Gate, Layers, Norm, Product, Prologue
from worker.kernels.recording import Capture
from worker.kernels.sampling import Draw, LogProbability, Unchosen
from worker.weights.quantized import QuantizedWeight

_LEAST_HEAD_DIM = 16  # of FlexAttention's kernels


class GpuKernels:
    """See Kernels. Quantised weights are used as what they stand for: they save no memory."""

    layout = None

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        compile_for: Compile,
        capture: Capture,
        read_free_bytes: Callable[[], int | None],
    ) -> None:
        """`dtype` of weights, activations, keys and values."""
        self.device = device
        self.name = f"torch {device.type}"
        self.activation_dtype = dtype
        self.capture = capture
        self._compile_for = compile_for
        self._read_free_bytes = read_free_bytes

    def product(
        self,
        parts: Sequence[torch.Tensor | QuantizedWeight],
        biases: Sequence[torch.Tensor | None],
    ) -> Product:
        weights = [self._plain(part) for part in parts]
        bias = None
        if any(each is not None for each in biases):
            bias = torch.cat(
                [
                    weight.new_zeros(len(weight)) if each is None else each.to(weight)
                    for weight, each in zip(weights, biases, strict=True)
                ]
            )
        return GpuProduct(torch.cat(weights) if len(weights) > 1 else weights[0], bias)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Product:
        raise SourceInvalid("kernels for GPUs pack no weights")

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor, scale: float) -> torch.Tensor:
        rows = F.embedding(token_ids, table).to(self.activation_dtype)
        return rows if scale == 1 else rows * scale

    def norm(
        self, x: torch.Tensor, norm: Norm, *, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        result = _normed(x, norm)
        return result if residual is None else residual + result

    def compile(self, layers: Layers) -> Layers:
        return layers

    def free_bytes(self) -> int | None:
        return self._read_free_bytes()

    def cache_bytes(self, shape: CacheShape) -> int:
        if shape.dtype is not self.activation_dtype:
            raise Invalid(
                f"on a GPU keys and values are kept as {self.activation_dtype}, as the model "
                f"computes, and not as {shape.dtype}",
                hint="leave engine.kv_cache_dtype at auto",
                param="engine.kv_cache_dtype",
            )
        if shape.head_dim < _LEAST_HEAD_DIM:
            raise UnsupportedModel(
                f"heads of {shape.head_dim} channels are too small for a GPU's kernels",
                hint="set resources.gpus to 0",
            )
        numbers = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * shape.block_size
        return numbers * shape.dtype.itemsize

    def allocate_cache(self, shape: CacheShape) -> FlexKVCache:
        return FlexKVCache(shape, self.device, self._compile_for)

    def choose(
        self, logits: torch.Tensor, draws: Sequence[Draw], masks: torch.Tensor | None
    ) -> list[int | Unchosen]:
        on_device = None if masks is None else masks.to(self.device)
        return torch_sampling.choose(logits, draws, on_device)

    def log_probabilities(
        self, logits: torch.Tensor, rows: Sequence[int], token_ids: Sequence[int], count: int
    ) -> list[LogProbability]:
        return torch_sampling.log_probabilities(logits, rows, token_ids, count)

    def _plain(self, part: torch.Tensor | QuantizedWeight) -> torch.Tensor:
        weight = part.dequantise() if isinstance(part, QuantizedWeight) else part
        return weight.to(device=self.device, dtype=self.activation_dtype)


class GpuProduct:
    """See Product."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(
        self,
        x: torch.Tensor,
        *,
        prologue: Prologue = None,
        gate: Gate | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if prologue is not None:
            x = _normed(x, prologue)
        product = F.linear(x, self._weight, self._bias)
        if gate is not None:
            product = _gated(product, gate)
        return product if residual is None else residual + product

    def state(self) -> Mapping[str, torch.Tensor]:
        return {}


def _gated(x: torch.Tensor, gate: Gate) -> torch.Tensor:
    gates, up = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    match gate:
        case Gate.SILU:
            return F.silu(gates) * up
        case Gate.GELU_TANH:
            return F.gelu(gates, approximate="tanh") * up


def _normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.rms_norm(x.float(), norm.weight.shape, norm.weight, norm.epsilon).to(x.dtype)
