"""What the architectures that can be imported are called in a GGUF and in a Hugging Face folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_ATTENTION: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_HEAD_NORMS: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS: Final = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS: Final = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FEED_FORWARD: Final = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_KEYS: Final = frozenset(
    (
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.factor",
        "rope.scaling.type",
        "vocab_size",
    )
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of model; `name` begins its keys in a GGUF."""

    name: str
    class_name: str
    model_type: str
    layer: Mapping[str, str]  # tensors of a layer, without `blk.N.` and `model.layers.N.`
    biases: frozenset[str] = frozenset()  # which of them have one
    more_keys: frozenset[str] = frozenset()
    has_neighbouring_pairs: bool = False  # rotary pairs lie side by side in the rows of q and k
    adds_to_norms: float = 0.0  # what a GGUF's norms have more than the folder's
    rope_base: float = 10_000.0  # where the file does not say
    is_always_tied: bool = False

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(f"{self.name}.{key}" for key in _KEYS | self.more_keys)


ARCHITECTURES: Final = {
    each.name: each
    for each in (
        Architecture(
            "llama",  # Mistral's files too
            "LlamaForCausalLM",
            "llama",
            _NORMS | _ATTENTION | _FEED_FORWARD,
            has_neighbouring_pairs=True,
        ),
        Architecture(
            "qwen2",
            "Qwen2ForCausalLM",
            "qwen2",
            _NORMS | _ATTENTION | _FEED_FORWARD,
            biases=frozenset({"attn_q", "attn_k", "attn_v"}),
            more_keys=frozenset({"rope.scaling.original_context_length"}),
        ),
        Architecture(
            "qwen3",
            "Qwen3ForCausalLM",
            "qwen3",
            _NORMS | _ATTENTION | _HEAD_NORMS | _FEED_FORWARD,
            more_keys=frozenset({"rope.scaling.original_context_length"}),
        ),
        Architecture(
            "phi3",
            "Phi3ForCausalLM",
            "phi3",
            {
                **_NORMS,
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
            more_keys=frozenset(
                {
                    "attention.sliding_window",
                    "rope.scaling.attn_factor",
                    "rope.scaling.original_context_length",
                }
            ),
        ),
        Architecture(
            "gemma2",
            "Gemma2ForCausalLM",
            "gemma2",
            _GEMMA_NORMS | _ATTENTION | _FEED_FORWARD,
            more_keys=frozenset(
                {"attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}
            ),
            adds_to_norms=1.0,
            is_always_tied=True,
        ),
        Architecture(
            "gemma3",
            "Gemma3ForCausalLM",
            "gemma3_text",
            _GEMMA_NORMS | _ATTENTION | _HEAD_NORMS | _FEED_FORWARD,
            more_keys=frozenset({"attention.sliding_window", "rope.freq_base_swa"}),
            adds_to_norms=1.0,
            rope_base=1_000_000.0,
        ),
    )
}
