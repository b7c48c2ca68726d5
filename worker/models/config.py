"""What `config.json` says of a model's shape."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.errors import SourceInvalid, UnsupportedModel
from infra.json_file import read_json_object
from worker.models.config_fields import Fields
from worker.models.families import FAMILIES, Family
from worker.models.rope_config import (
    MOST_CONTEXT_TOKENS,
    DynamicScaling,
    LongRopeScaling,
    Rope,
    parse_ropes,
)
from worker.quantization.scheme import Scheme, parse_scheme

MOST_CONFIG_BYTES = 4 << 20

Dtype = Literal["bfloat16", "float16", "float32"]
Activation = Literal["silu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What differs from layer to layer."""

    window: int | None  # positions that a token sees, its own among them; None: all
    rope: int = 0  # index among the model's


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of one of the families."""

    architecture: str
    vocabulary: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int  # channels of a head that are rotated, its first ones
    rms_norm_epsilon: float
    ropes: tuple[Rope, ...]
    layers: tuple[LayerConfig, ...]
    context_tokens: int
    ties_embeddings: bool
    has_query_key_value_bias: bool
    has_output_bias: bool  # of the attention
    has_mlp_bias: bool
    dtype: Dtype
    scheme: Scheme | None  # of a checkpoint that is quantised already
    attention_scale: float
    activation: Activation = "silu"
    attention_softcap: float | None = None
    final_softcap: float | None = None  # of logits
    has_head_norms: bool = False  # of each query and key
    has_post_norms: bool = False  # after attention and after feed-forward, before the residual
    has_fused_projections: bool = False  # in the files: qkv_proj, gate_up_proj
    norm_offset: float = 0.0  # added to the weights of norms
    embedding_scale: float = 1.0

    @property
    def num_layers(self) -> int:
        return len(self.layers)


def read_config(model_dir: Path) -> ModelConfig:
    """Reads and checks `config.json`.

    Raises SourceInvalid when a field is missing or makes no sense, UnsupportedModel when it asks
    for something that this engine does not compute.
    """
    return parse_config(read_json_object(model_dir / "config.json", most_bytes=MOST_CONFIG_BYTES))


def parse_config(values: Mapping[str, Any]) -> ModelConfig:
    """As `read_config`, of the parsed file."""
    fields = Fields(values)
    architecture = _architecture(values)
    family = FAMILIES[architecture]
    _refuse_unsupported(fields, family)
    num_heads = fields.integer("num_attention_heads", most=1 << 14)
    hidden_size = fields.integer("hidden_size", most=1 << 20)
    head_dim = fields.integer(
        "head_dim", most=1 << 12, default=family.head_dim or max(1, hidden_size // num_heads)
    )
    context_tokens = fields.integer(
        "max_position_embeddings", most=MOST_CONTEXT_TOKENS, default=family.context_tokens
    )
    ropes = parse_ropes(
        fields,
        context_tokens=context_tokens,
        theta=family.theta,
        local_theta=family.local_theta,
    )
    has_attention_bias = family.reads_attention_bias and fields.flag("attention_bias")
    config = ModelConfig(
        architecture=architecture,
        vocabulary=fields.integer("vocab_size", most=1 << 24),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", most=1 << 22),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", most=num_heads, default=num_heads),
        head_dim=head_dim,
        rotary_dim=_rotary_dim(fields, family, head_dim),
        rms_norm_epsilon=fields.number("rms_norm_eps", least=0, most=1, default=1e-6),
        ropes=ropes,
        layers=_layers(fields, family, fields.integer("num_hidden_layers", most=1 << 12)),
        context_tokens=ropes[0].stretched(context_tokens),
        ties_embeddings=fields.flag("tie_word_embeddings", default=family.is_gemma),
        has_query_key_value_bias=family.has_query_key_value_bias or has_attention_bias,
        has_output_bias=has_attention_bias,
        has_mlp_bias=family.reads_mlp_bias and fields.flag("mlp_bias"),
        dtype=_dtype(values),
        scheme=parse_scheme(values.get("quantization_config")),
        attention_scale=_attention_scale(fields, family, head_dim),
        activation=_activation(fields, family),
        attention_softcap=_softcap(fields, family, "attn_logit_softcapping", 50.0),
        final_softcap=_softcap(fields, family, "final_logit_softcapping", 30.0),
        has_head_norms=family.has_head_norms,
        has_post_norms=family.is_gemma,
        has_fused_projections=family.has_fused_projections,
        norm_offset=1.0 if family.is_gemma else 0.0,
        embedding_scale=math.sqrt(hidden_size) if family.is_gemma else 1.0,
    )
    _check(config)
    return config


def _check(config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise SourceInvalid("config.json: num_key_value_heads does not divide num_attention_heads")
    if config.head_dim % 2:
        raise SourceInvalid("config.json: head_dim is odd, which rotary embeddings rule out")
    if config.rotary_dim % 2 or config.rotary_dim == 0:
        raise SourceInvalid("config.json: partial_rotary_factor leaves an odd part of each head")
    for rope in config.ropes:
        match rope.scaling:
            case DynamicScaling() if config.rotary_dim == 2:
                raise SourceInvalid("config.json: a dynamic rope needs more than two channels")
            case LongRopeScaling(short_factors=short, long_factors=long):
                if {len(short), len(long)} != {config.rotary_dim // 2}:
                    raise SourceInvalid(
                        f"config.json: {len(short)} factors of short contexts and {len(long)} of "
                        f"long ones, where {config.rotary_dim} channels turn"
                    )
            case _:
                pass


def _architecture(values: Mapping[str, Any]) -> str:
    match values.get("architectures"):
        case [str(architecture)] if architecture in FAMILIES:
            return architecture
        case [str(architecture)]:
            raise UnsupportedModel(
                f"the architecture {architecture[:100]} is unknown",
                hint=f"this engine runs {', '.join(sorted(FAMILIES))}",
            )
        case _:
            raise SourceInvalid("config.json does not name one architecture")


def _refuse_unsupported(fields: Fields, family: Family) -> None:
    if family.is_gemma and fields.flag("use_bidirectional_attention"):
        raise UnsupportedModel("tokens see the ones after them")
    if not family.has_softcaps and "attn_logit_softcapping" in fields:
        raise UnsupportedModel("this architecture has no soft-cap of attention")


def _activation(fields: Fields, family: Family) -> Activation:
    """Gemma's `hidden_act` is a remnant that nobody reads."""
    if family.is_gemma:
        name = fields.text("hidden_activation") or "gelu_pytorch_tanh"
    else:
        name = fields.text("hidden_act") or "silu"
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(f"the activation {name[:50]} is unknown")
    return _ACTIVATIONS[name]


def _rotary_dim(fields: Fields, family: Family, head_dim: int) -> int:
    parameters = fields.object("rope_parameters")
    is_inside = parameters is not None and "partial_rotary_factor" in parameters
    holder = parameters if parameters is not None and is_inside else fields
    part = holder.number("partial_rotary_factor", least=0, most=1, default=1.0)
    if part != 1 and not family.reads_rotary_part:
        raise UnsupportedModel("the rotary embedding covers a part of each head only")
    return int(head_dim * part)


def _attention_scale(fields: Fields, family: Family, head_dim: int) -> float:
    if not family.is_gemma:
        return 1 / math.sqrt(head_dim)
    scalar = fields.number("query_pre_attn_scalar", least=1e-3, most=1e6, default=256.0)
    return 1 / math.sqrt(scalar)


def _softcap(fields: Fields, family: Family, name: str, default: float) -> float | None:
    """Null says that there is none; Gemma 3 has none by default either."""
    if not family.is_gemma or fields.is_null(name):
        return None
    if not family.has_softcaps and name not in fields:
        return None
    return fields.number(name, least=1e-3, most=1e6, default=default)


def _layers(fields: Fields, family: Family, count: int) -> tuple[LayerConfig, ...]:
    local = LayerConfig(_window(fields, family), 0 if family.local_theta is None else 1)
    is_local = _are_local(fields, family, count)
    return tuple(local if is_local[index] else LayerConfig(None) for index in range(count))


def _window(fields: Fields, family: Family) -> int | None:
    has_default = family.windows == "alternating" and not fields.is_null("sliding_window")
    is_unused = family.windows == "upper" and not fields.flag("use_sliding_window")
    if is_unused or not (has_default or "sliding_window" in fields):
        return None
    return fields.integer("sliding_window", most=MOST_CONTEXT_TOKENS, default=family.window)


def _are_local(fields: Fields, family: Family, count: int) -> list[bool]:
    """Layer by layer, whether it has the window."""
    if family.windows in {"none", "all"}:
        return [family.windows == "all"] * count
    if (kinds := fields.texts("layer_types")) is not None:
        if len(kinds) != count or not {*kinds} <= {"full_attention", "sliding_attention"}:
            raise SourceInvalid(f"config.json: layer_types is not {count} kinds of attention")
        return [kind == "sliding_attention" for kind in kinds]
    if family.windows == "upper":
        first = fields.integer("max_window_layers", most=1 << 12, default=28)
        return [index >= first for index in range(count)]
    every = fields.integer(
        "sliding_window_pattern", most=1 << 12, default=family.full_attention_every
    )
    return [(index + 1) % every != 0 for index in range(count)]


def _dtype(values: Mapping[str, Any]) -> Dtype:
    match values.get("dtype", values.get("torch_dtype", "float32")):
        case "bfloat16":
            return "bfloat16"
        case "float16":
            return "float16"
        case "float32" | None:
            return "float32"
        case other:
            raise UnsupportedModel(f"the number format {str(other)[:50]} is unknown")
