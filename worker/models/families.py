"""How the architectures that this engine runs differ from Llama, and in what they leave unsaid."""

from dataclasses import dataclass
from typing import Literal

# Which layers have a window: all where `sliding_window` is given (Mistral); with
# `use_sliding_window`, those from `max_window_layers` on (Qwen); all but each nth (Gemma).
Windows = Literal["none", "all", "upper", "alternating"]


@dataclass(frozen=True, slots=True)
class Family:
    """Facts that `config.json` does not state, then defaults of what it may state."""

    windows: Windows = "none"
    has_query_key_value_bias: bool = False
    reads_attention_bias: bool = False  # of all four projections
    reads_mlp_bias: bool = False
    has_head_norms: bool = False  # of each query and key before they are rotated
    has_fused_projections: bool = False  # in the files: qkv_proj, gate_up_proj
    reads_rotary_part: bool = False
    is_gemma: bool = False  # norms (1 + weight), also after attention and feed-forward; see config
    has_softcaps: bool = False

    head_dim: int | None = None  # None: hidden size / heads
    full_attention_every: int = 1  # of alternating layers
    window: int = 4096
    theta: float = 10_000.0
    local_theta: float | None = None  # of layers with a window, where they have one of their own
    context_tokens: int = 2048


FAMILIES = {
    "LlamaForCausalLM": Family(reads_attention_bias=True, reads_mlp_bias=True),
    "MistralForCausalLM": Family(windows="all"),
    "Qwen2ForCausalLM": Family(windows="upper", has_query_key_value_bias=True),
    "Qwen3ForCausalLM": Family(
        windows="upper", reads_attention_bias=True, has_head_norms=True, head_dim=128
    ),
    "Phi3ForCausalLM": Family(windows="all", has_fused_projections=True, reads_rotary_part=True),
    "Gemma2ForCausalLM": Family(
        windows="alternating",
        reads_attention_bias=True,
        is_gemma=True,
        has_softcaps=True,
        head_dim=256,
        full_attention_every=2,
        context_tokens=8192,
    ),
    "Gemma3ForCausalLM": Family(
        windows="alternating",
        reads_attention_bias=True,
        has_head_norms=True,
        is_gemma=True,
        head_dim=256,
        full_attention_every=6,
        theta=1_000_000.0,
        local_theta=10_000.0,
        context_tokens=131_072,
    ),
}
