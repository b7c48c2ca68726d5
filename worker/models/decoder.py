"""A pre-norm decoder with grouped-query attention, rotary positions and gated feed-forward."""

from collections.abc import Sequence

import torch

from worker.kernels.port import (
    AttentionLayer,
    AttentionStep,
    CacheShape,
    Gate,
    Kernels,
    KVCache,
    Span,
)
from worker.layers.attention import Attention
from worker.layers.feed_forward import FeedForward
from worker.layers.rotary import Rotary
from worker.models.config import ModelConfig
from worker.models.pack import Pack
from worker.models.parts import Parts, Slot
from worker.models.rope import rotary_frequencies
from worker.quantization.reader import WeightReader


class Decoder:
    """See CausalModel. Touvron et al. 2023, with the names of Hugging Face's files."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightReader,
        kernels: Kernels,
        *,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        context_tokens: int,
        pack: Pack | None = None,
    ) -> None:
        """Raises SourceInvalid when the weights do not fit the config."""
        self.vocabulary = config.vocabulary
        self.context_tokens = context_tokens
        self.kernels = kernels
        self._config = config
        self._kv_dtype = kv_dtype
        parts = Parts(config, weights, kernels, dtype, pack)
        self._embedding = parts.tensor(
            "model.embed_tokens.weight", (config.vocabulary, config.hidden_size)
        )
        self._layers = [_Layer(parts, index) for index in range(config.num_layers)]
        self._norm = parts.norm("model.norm")
        head = "model.embed_tokens" if config.ties_embeddings else "lm_head"
        self._head = parts.linear([Slot(head, config.vocabulary)], config.hidden_size)
        frequencies = rotary_frequencies(config.rope, config.head_dim).to(kernels.device)
        self._rotary = Rotary(frequencies)

    @property
    def kv_bytes_per_token(self) -> int:
        shape = self._cache_shape(num_blocks=1, block_size=16, lanes=1)
        return self.kernels.cache_bytes(shape) // shape.block_size

    def allocate_cache(self, *, num_blocks: int, block_size: int, lanes: int = 1) -> KVCache:
        return self.kernels.allocate_cache(
            self._cache_shape(num_blocks=num_blocks, block_size=block_size, lanes=lanes)
        )

    @torch.inference_mode()
    def logits(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        sampled: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        device = self.kernels.device
        step = cache.lay_out(spans)
        rope = self._rotary.up_to(max(span.first + span.count for span in spans))
        x = self.kernels.embed(torch.tensor(token_ids, device=device), self._embedding, 1.0)
        for layer in self._layers:
            x = layer(x, step, rope)
        x = x.index_select(0, torch.tensor(sampled, dtype=torch.int64, device=device))
        return self._head(x, prologue=self._norm.prologue)

    def _cache_shape(self, *, num_blocks: int, block_size: int, lanes: int) -> CacheShape:
        config = self._config
        return CacheShape(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self._kv_dtype,
            lanes=lanes,
        )


class _Layer:
    """One decoder layer."""

    def __init__(self, parts: Parts, index: int) -> None:
        prefix = f"model.layers.{index}"
        self._attention_norm = parts.norm(f"{prefix}.input_layernorm")
        self._attention = _attention(parts, f"{prefix}.self_attn", index)
        self._feed_forward_norm = parts.norm(f"{prefix}.post_attention_layernorm")
        self._feed_forward = _feed_forward(parts, f"{prefix}.mlp")

    def __call__(self, x: torch.Tensor, step: AttentionStep, rope: torch.Tensor) -> torch.Tensor:
        norm = self._attention_norm.prologue
        x = self._attention(x, step, rope, prologue=norm, residual=x)
        return self._feed_forward(x, prologue=self._feed_forward_norm.prologue, residual=x)


def _attention(parts: Parts, prefix: str, index: int) -> Attention:
    config = parts.config
    has_bias = config.has_attention_bias
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return Attention(
        AttentionLayer(index, scale=config.head_dim**-0.5),
        query_key_value=parts.linear(
            [
                Slot(f"{prefix}.q_proj", heads, has_bias),
                Slot(f"{prefix}.k_proj", kv_heads, has_bias),
                Slot(f"{prefix}.v_proj", kv_heads, has_bias),
            ],
            config.hidden_size,
        ),
        output=parts.linear([Slot(f"{prefix}.o_proj", config.hidden_size, has_bias)], heads),
    )


def _feed_forward(parts: Parts, prefix: str) -> FeedForward:
    config = parts.config
    hidden, inner, has_bias = config.hidden_size, config.intermediate_size, config.has_mlp_bias
    return FeedForward(
        Gate.SILU,
        gate_up=parts.linear(
            [
                Slot(f"{prefix}.gate_proj", inner, has_bias),
                Slot(f"{prefix}.up_proj", inner, has_bias),
            ],
            hidden,
        ),
        down=parts.linear([Slot(f"{prefix}.down_proj", hidden, has_bias)], inner),
    )
