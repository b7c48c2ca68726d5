"""A pre-norm decoder with grouped-query attention, rotary positions and gated feed-forward."""

from collections.abc import Sequence
from dataclasses import replace

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
from worker.models.parts import Parts, Slot, share_of
from worker.models.rehearsal import BLOCK, REHEARSED_TOKENS, Rehearsal
from worker.models.residence import to_device, to_host
from worker.models.rope import rotary_frequencies, rotary_magnitude
from worker.parallel.group import Group
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
        group: Group,
        pack: Pack | None = None,
    ) -> None:
        """Raises SourceInvalid when the weights do not fit the config, Invalid when the model
        cannot be divided among the group."""
        self.vocabulary = config.vocabulary
        self.hidden_size = config.hidden_size
        self.context_tokens = context_tokens
        self.kernels = kernels
        self._config = config
        self._kv_dtype = kv_dtype
        parts = Parts(config, weights, kernels, dtype, group, pack)
        self.shares = [share_of(config, rank, group.size) for rank in range(group.size)]
        self._group = group
        self._embedding = parts.tensor(
            "model.embed_tokens.weight", (config.vocabulary, config.hidden_size)
        )
        self._rotaries = [
            Rotary(
                rotary_frequencies(rope, config.rotary_dim, context_tokens=context_tokens).to(
                    kernels.device
                ),
                magnitude=rotary_magnitude(rope),
            )
            for rope in config.ropes
        ]
        # Rounded as the table is: trained with, and so computed with.
        self._embedding_scale = float(torch.tensor(config.embedding_scale, dtype=dtype))
        rehearsal = self._rehearsal(dtype) if parts.wants_rehearsal else None
        self._layers = [_Layer(parts, index, rehearsal) for index in range(config.num_layers)]
        # How ranks talk between operations is not the kernels' to know.
        self._through = self._one_by_one if group.size > 1 else kernels.compile(self._one_by_one)
        self._norm = parts.norm("model.norm")
        head = "model.embed_tokens" if config.ties_embeddings else "lm_head"
        self._head = parts.linear([Slot(head, (parts.share.vocabulary,))], parts.hidden)
        self._widths = [len(share.vocabulary.kept) for share in self.shares]

    @property
    def kv_bytes_per_token(self) -> int:
        shape = self._cache_shape(num_blocks=1, block_size=16, lanes=1)
        return self.kernels.cache_bytes(shape) // shape.block_size

    def allocate_cache(self, *, num_blocks: int, block_size: int, lanes: int = 1) -> KVCache:
        return self.kernels.allocate_cache(
            self._cache_shape(num_blocks=num_blocks, block_size=block_size, lanes=lanes)
        )

    def logits(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        return self.head(self.states(token_ids, spans, wanted, cache))

    @torch.inference_mode()
    def states(
        self,
        token_ids: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        cache: KVCache,
    ) -> torch.Tensor:
        device = self.kernels.device
        step = cache.lay_out(spans)
        ropes = self.ropes(max(span.first + span.count for span in spans))
        x = self.through_layers(torch.tensor(token_ids, device=device), step, ropes)
        return x.index_select(0, torch.tensor(wanted, dtype=torch.int64, device=device))

    def ropes(self, end: int) -> Sequence[torch.Tensor]:
        """The angles of all positions below `end`."""
        return [rotary.up_to(end) for rotary in self._rotaries]

    def through_layers(
        self, token_ids: torch.Tensor, step: AttentionStep, ropes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """[tokens] to [tokens, hidden]; what is done depends on no number in the tensors."""
        return self._through(self._embed(token_ids), step, ropes)

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.kernels.embed(token_ids, self._embedding, self._embedding_scale)

    def _one_by_one(
        self, x: torch.Tensor, step: AttentionStep, ropes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        for layer in self._layers:
            x = layer(x, step, ropes)
        return x

    @torch.inference_mode()
    def head(self, states: torch.Tensor) -> torch.Tensor:
        logits = self._group.gather(self._head(states, prologue=self._norm.prologue), self._widths)
        cap = self._config.final_softcap
        return logits if cap is None else _softcapped(logits, cap)

    @torch.inference_mode()
    def normed(self, states: torch.Tensor) -> torch.Tensor:
        return self._norm(states)

    def to_host(self) -> None:
        to_host(self)

    def to_device(self) -> None:
        to_device(self, self.kernels.device)

    def _rehearsal(self, dtype: torch.dtype) -> Rehearsal:
        tokens = min(REHEARSED_TOKENS, self.context_tokens)
        shape = self._cache_shape(num_blocks=-(-tokens // BLOCK), block_size=BLOCK, lanes=1)
        return Rehearsal(
            self.kernels,
            # Not as the engine keeps keys and values: what is packed is for both formats.
            self.kernels.allocate_cache(replace(shape, dtype=dtype)),
            self.ropes(tokens),
            self._embed,
            vocabulary=self.vocabulary,
            tokens=tokens,
        )

    def _cache_shape(self, *, num_blocks: int, block_size: int, lanes: int) -> CacheShape:
        config, share = self._config, self.shares[self._group.rank]
        return CacheShape(
            num_layers=config.num_layers,
            num_heads=len(share.heads.kept),
            num_kv_heads=len(share.kv_heads.kept),
            head_dim=config.head_dim,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=self._kv_dtype,
            lanes=lanes,
        )


def _softcapped(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(logits / cap), in place; by rows, as torch's vectors depend on a tensor's size."""
    for row in logits:
        row.copy_((row.float() / cap).tanh_().mul_(cap))
    return logits


class _Layer:
    """One decoder layer.

    The residual is added by the projections that end attention and feed-forward, or by the norms
    that follow these (Gemma).
    """

    def __init__(self, parts: Parts, index: int, rehearsal: Rehearsal | None) -> None:
        """With a `rehearsal` the layer does its part as soon as it can."""
        prefix = f"model.layers.{index}"
        has_post_norms = parts.config.has_post_norms
        after_attention = f"{prefix}.post_attention_layernorm"
        before_feed_forward = f"{prefix}.pre_feedforward_layernorm"
        after_feed_forward = f"{prefix}.post_feedforward_layernorm"
        self._rope = parts.config.layers[index].rope
        self._attention_norm = parts.norm(f"{prefix}.input_layernorm")
        self._attention = _attention(parts, f"{prefix}.self_attn", index)
        self._attended_norm = parts.norm(after_attention) if has_post_norms else None
        if rehearsal is not None:
            rehearsal.attend(self._attend)
        # What Llama named after its place behind the attention is the norm before the feed-forward.
        self._feed_forward_norm = parts.norm(
            before_feed_forward if has_post_norms else after_attention
        )
        importance = None
        if rehearsal is not None:
            importance = rehearsal.importance(self._feed_forward_norm.prologue)
        self._feed_forward = _feed_forward(parts, f"{prefix}.mlp", importance)
        self._fed_norm = parts.norm(after_feed_forward) if has_post_norms else None
        if rehearsal is not None:
            rehearsal.feed(self._feed)

    def __call__(
        self, x: torch.Tensor, step: AttentionStep, ropes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return self._feed(self._attend(x, step, ropes))

    def _attend(
        self, x: torch.Tensor, step: AttentionStep, ropes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        rope, norm = ropes[self._rope], self._attention_norm.prologue
        if self._attended_norm is None:
            return self._attention(x, step, rope, prologue=norm, residual=x)
        return self._attended_norm(self._attention(x, step, rope, prologue=norm), residual=x)

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        norm = self._feed_forward_norm.prologue
        if self._fed_norm is None:
            return self._feed_forward(x, prologue=norm, residual=x)
        return self._fed_norm(self._feed_forward(x, prologue=norm), residual=x)


def _attention(parts: Parts, prefix: str, index: int) -> Attention:
    config, hidden = parts.config, parts.hidden
    query = parts.share.heads.times(config.head_dim)
    key = value = parts.share.kv_heads.times(config.head_dim)
    has_bias = config.has_query_key_value_bias
    if config.has_fused_projections:
        slots = [Slot(f"{prefix}.qkv_proj", (query, key, value), has_bias)]
    else:
        slots = [
            Slot(f"{prefix}.q_proj", (query,), has_bias),
            Slot(f"{prefix}.k_proj", (key,), has_bias),
            Slot(f"{prefix}.v_proj", (value,), has_bias),
        ]
    has_norms, channels = config.has_head_norms, config.head_dim
    layer = AttentionLayer(
        index,
        scale=config.attention_scale,
        window=config.layers[index].window,
        softcap=config.attention_softcap,
        query_norm=parts.norm_weight(f"{prefix}.q_norm", channels) if has_norms else None,
        key_norm=parts.norm_weight(f"{prefix}.k_norm", channels) if has_norms else None,
    )
    output = [Slot(f"{prefix}.o_proj", (hidden,), config.has_output_bias)]
    return Attention(
        layer, query_key_value=parts.linear(slots, hidden), output=parts.linear(output, query)
    )


def _feed_forward(parts: Parts, prefix: str, importance: torch.Tensor | None) -> FeedForward:
    config = parts.config
    hidden, inner, has_bias = parts.hidden, parts.share.inner, config.has_mlp_bias
    if config.has_fused_projections:
        slots = [Slot(f"{prefix}.gate_up_proj", (inner, inner), has_bias)]
    else:
        slots = [
            Slot(f"{prefix}.gate_proj", (inner,), has_bias),
            Slot(f"{prefix}.up_proj", (inner,), has_bias),
        ]
    return FeedForward(
        Gate(config.activation),
        gate_up=parts.linear(slots, hidden, importance),
        down=parts.linear([Slot(f"{prefix}.down_proj", (hidden,), has_bias)], inner),
    )
