"""The Llama family: pre-norm decoder, grouped-query attention, rotary positions, gated SiLU."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from worker.kernels.port import Angles, AttentionStep, CacheShape, Kernels, KVCache, Span
from worker.layers.attention import Attention
from worker.layers.feed_forward import FeedForward
from worker.layers.linear import Linear
from worker.layers.norm import RmsNorm
from worker.layers.rotary import Rotary
from worker.models.config import LinearScaling, Llama3Scaling, ModelConfig, Rope
from worker.weights.loader import Weights


class Llama:
    """See CausalModel. Touvron et al. 2023, with the names of Hugging Face's files."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kernels: Kernels,
        *,
        dtype: torch.dtype,
        context_tokens: int,
    ) -> None:
        """Raises SourceInvalid when the weights do not fit the config."""
        self.vocabulary = config.vocabulary
        self.context_tokens = context_tokens
        self._config = config
        self._dtype = dtype
        self._kernels = kernels
        parts = _Parts(config, weights, kernels, dtype)
        self._embedding = parts.tensor("model.embed_tokens.weight", parts.vocabulary_shape)
        self._layers = [_Layer(parts, index) for index in range(config.num_layers)]
        self._norm = parts.norm("model.norm")
        self._head = Linear(
            kernels,
            self._embedding
            if config.ties_embeddings
            else parts.tensor("lm_head.weight", parts.vocabulary_shape),
        )
        frequencies = rotary_frequencies(config.rope, config.head_dim).to(kernels.device)
        self._rotary = Rotary(frequencies)

    @property
    def kv_bytes_per_token(self) -> int:
        config = self._config
        numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return numbers * self._dtype.itemsize

    def allocate_cache(self, *, num_blocks: int, block_size: int) -> KVCache:
        config = self._config
        return self._kernels.allocate_cache(
            CacheShape(
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                num_blocks=num_blocks,
                block_size=block_size,
                dtype=self._dtype,
            )
        )

    @torch.inference_mode()
    def logits(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        sampled: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        device = self._kernels.device
        step = cache.lay_out(spans)
        end = max(span.first + span.count for span in spans)
        angles = self._rotary.at(step.positions, end=end)
        x = F.embedding(torch.tensor(token_ids, device=device), self._embedding)
        for layer in self._layers:
            x = layer(x, step, angles)
        x = x.index_select(0, torch.tensor(sampled, dtype=torch.int64, device=device))
        return self._head(self._norm(x))


class _Parts:
    """Makes a model's layers out of its weights, by their names."""

    def __init__(
        self, config: ModelConfig, weights: Weights, kernels: Kernels, dtype: torch.dtype
    ) -> None:
        self.config = config
        self.kernels = kernels
        self.vocabulary_shape = (config.vocabulary, config.hidden_size)
        self._weights = weights
        self._dtype = dtype

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._weights.take(name, shape, self._dtype).to(self.kernels.device)

    def norm(self, name: str) -> RmsNorm:
        weight = self.tensor(f"{name}.weight", (self.config.hidden_size,))
        return RmsNorm(self.kernels, weight, self.config.rms_norm_epsilon)

    def linear(self, name: str, inputs: int, outputs: int, *, has_bias: bool) -> Linear:
        weight = self.tensor(f"{name}.weight", (outputs, inputs))
        bias = self.tensor(f"{name}.bias", (outputs,)) if has_bias else None
        return Linear(self.kernels, weight, bias)


class _Layer:
    """One decoder layer."""

    def __init__(self, parts: _Parts, index: int) -> None:
        prefix = f"model.layers.{index}"
        self._attention_norm = parts.norm(f"{prefix}.input_layernorm")
        self._attention = _attention(parts, f"{prefix}.self_attn", index)
        self._feed_forward_norm = parts.norm(f"{prefix}.post_attention_layernorm")
        self._feed_forward = _feed_forward(parts, f"{prefix}.mlp")

    def __call__(self, x: torch.Tensor, step: AttentionStep, angles: Angles) -> torch.Tensor:
        x = x + self._attention(self._attention_norm(x), step, angles)
        return x + self._feed_forward(self._feed_forward_norm(x))


def _attention(parts: _Parts, prefix: str, index: int) -> Attention:
    config = parts.config
    hidden, has_bias = config.hidden_size, config.has_attention_bias
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return Attention(
        index,
        query=parts.linear(f"{prefix}.q_proj", hidden, heads, has_bias=has_bias),
        key=parts.linear(f"{prefix}.k_proj", hidden, kv_heads, has_bias=has_bias),
        value=parts.linear(f"{prefix}.v_proj", hidden, kv_heads, has_bias=has_bias),
        output=parts.linear(f"{prefix}.o_proj", heads, hidden, has_bias=has_bias),
    )


def _feed_forward(parts: _Parts, prefix: str) -> FeedForward:
    config = parts.config
    hidden, inner, has_bias = config.hidden_size, config.intermediate_size, config.has_mlp_bias
    return FeedForward(
        parts.kernels,
        gate=parts.linear(f"{prefix}.gate_proj", hidden, inner, has_bias=has_bias),
        up=parts.linear(f"{prefix}.up_proj", hidden, inner, has_bias=has_bias),
        down=parts.linear(f"{prefix}.down_proj", inner, hidden, has_bias=has_bias),
    )


def rotary_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Radians a position of each pair of a head's channels, float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            return _llama3_frequencies(frequencies, scaling)


def _llama3_frequencies(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Wave lengths over `longest` are stretched, under `shortest` kept, the rest blended."""
    context = scaling.original_context_tokens
    wave_lengths = 2 * math.pi / frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    stretched = frequencies / scaling.factor
    smooth = (context / wave_lengths - low) / (high - low)
    blended = (1 - smooth) * stretched + smooth * frequencies
    longest, shortest = context / low, context / high
    kept = torch.where(wave_lengths < shortest, frequencies, blended)
    return torch.where(wave_lengths > longest, stretched, kept)
