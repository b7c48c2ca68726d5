"""A GGUF's sizes and tensors as the config.json and the weights of a Hugging Face folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.gguf_architectures import ARCHITECTURES, Architecture
from worker.weights.gguf_file import GgufFile
from worker.weights.gguf_rope import TABLES, rope_scaling
from worker.weights.gguf_tensors import Placement, planned
from worker.weights.safetensors_writer import PlannedTensor

# Gemma's attention is scaled by the head size, that of its largest models by hidden size / heads;
# a GGUF does not say, llama.cpp knows them by their number of layers.
_SCALED_BY_HIDDEN_SIZE: Final = {"gemma2": 46, "gemma3": 62}
_GEMMA3_LOCAL_BASE: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model."""

    architecture: Architecture
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    context_tokens: int
    vocabulary: int
    norm_epsilon: float
    rope_base: float
    rope_scaling: dict[str, Any] | None
    is_tied: bool  # the output projection is the embedding


def read_shape(gguf: GgufFile) -> Shape:
    """The model's sizes; raises UnsupportedModel for what is no dense model of a known kind."""
    architecture = _architecture(gguf)
    name = architecture.name
    hidden = gguf.integer(f"{name}.embedding_length", high=1 << 20)
    heads = gguf.integer(f"{name}.attention.head_count", high=4096)
    head_dim = gguf.integer(f"{name}.attention.key_length", max(1, hidden // heads), high=4096)
    rotary_dim = gguf.integer(f"{name}.rope.dimension_count", head_dim, high=4096)
    rope_base = gguf.number(f"{name}.rope.freq_base", architecture.rope_base)
    shape = Shape(
        architecture,
        layers=gguf.integer(f"{name}.block_count", high=4096),
        hidden=hidden,
        intermediate=gguf.integer(f"{name}.feed_forward_length", high=1 << 22),
        heads=heads,
        kv_heads=gguf.integer(f"{name}.attention.head_count_kv", heads, high=4096),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        context_tokens=gguf.integer(f"{name}.context_length", high=1 << 28),
        vocabulary=_embedding_rows(gguf, hidden),
        norm_epsilon=gguf.number(f"{name}.attention.layer_norm_rms_epsilon"),
        rope_base=rope_base,
        rope_scaling=rope_scaling(gguf, name, rotary_dim=rotary_dim, base=rope_base),
        is_tied=architecture.is_always_tied or "output.weight" not in gguf.tensors,
    )
    _check_heads(gguf, shape)
    return shape


def model_config(
    gguf: GgufFile, shape: Shape, *, bos: int | None, eos: int | None
) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": [shape.architecture.class_name],
        "model_type": shape.architecture.model_type,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context_tokens,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_scaling": shape.rope_scaling,
        "rope_theta": shape.rope_base,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    } | _own_fields(gguf, shape)


def plan_tensors(gguf: GgufFile, shape: Shape) -> list[PlannedTensor]:
    """Every tensor of the model in the order a forward pass uses them.

    Raises SourceInvalid when one is missing or has another shape, UnsupportedModel when there are
    tensors that such a model does not have.
    """
    placements = list(_placements(shape))
    known = {placement.source for placement in placements} | TABLES
    extra = sorted(set(gguf.tensors) - known)
    if extra:
        raise UnsupportedModel(
            f"{gguf.path.name} has {len(extra)} tensors that a dense {shape.architecture.name} "
            f"does not have: {', '.join(extra[:4])}"
        )
    return [planned(gguf, placement) for placement in placements]


def _architecture(gguf: GgufFile) -> Architecture:
    name = gguf.text("general.architecture")
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise UnsupportedModel(
            f"{gguf.path.name}: architecture {name!r} cannot be imported",
            hint=f"GGUF files of these can: {', '.join(ARCHITECTURES)}",
        )
    unknown = sorted(
        key for key in gguf.metadata if key.startswith(f"{name}.") and key not in architecture.keys
    )
    if unknown:
        raise UnsupportedModel(f"{gguf.path.name}: {', '.join(unknown[:8])} is not understood")
    if gguf.integer(f"{name}.expert_count", 0, low=0):
        raise UnsupportedModel(f"{gguf.path.name}: mixtures of experts cannot be imported")
    return architecture


def _check_heads(gguf: GgufFile, shape: Shape) -> None:
    if shape.head_dim % 2 or shape.heads % shape.kv_heads:
        raise SourceInvalid(
            f"{gguf.path.name}: {shape.heads} heads of {shape.head_dim} over {shape.kv_heads} "
            "key-value heads do not divide"
        )
    name = shape.architecture.name
    if gguf.integer(f"{name}.attention.value_length", shape.head_dim) != shape.head_dim:
        raise UnsupportedModel(
            f"{gguf.path.name}: {name}.attention.value_length differs from the head size"
        )
    turns_part = shape.architecture.name == "phi3" and shape.rotary_dim < shape.head_dim
    if shape.rotary_dim != shape.head_dim and not turns_part:
        raise UnsupportedModel(
            f"{gguf.path.name}: {name}.rope.dimension_count differs from the head size"
        )


def _embedding_rows(gguf: GgufFile, hidden: int) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        raise SourceInvalid(f"{gguf.path.name}: token_embd.weight is missing or misshapen")
    return embedding.shape[0]


def _own_fields(gguf: GgufFile, shape: Shape) -> dict[str, Any]:
    """What config.json says of this architecture only."""
    name = shape.architecture.name
    match name:
        case "llama":
            return {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
        case "qwen2":
            return {"use_sliding_window": False}
        case "qwen3":
            return {"attention_bias": False, "use_sliding_window": False}
        case "phi3":
            scaling = shape.rope_scaling or {}
            original = "original_max_position_embeddings"
            return {
                original: scaling.get(original, shape.context_tokens),
                "pad_token_id": None,
                "partial_rotary_factor": shape.rotary_dim / shape.head_dim,
                "sliding_window": _window(gguf, name),
            }
        case _:
            return _gemma_fields(gguf, shape)


def _gemma_fields(gguf: GgufFile, shape: Shape) -> dict[str, Any]:
    name = shape.architecture.name
    is_largest = shape.layers == _SCALED_BY_HIDDEN_SIZE[name]
    fields: dict[str, Any] = {
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": shape.hidden // shape.heads if is_largest else shape.head_dim,
        "sliding_window": _window(gguf, name),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
    if name == "gemma2":
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        return fields | {cap: gguf.number(f"{name}.{cap}") for cap in caps}
    local_base = gguf.number(f"{name}.rope.freq_base_swa", _GEMMA3_LOCAL_BASE)
    return fields | {"rope_local_base_freq": local_base, "sliding_window_pattern": 6}


def _window(gguf: GgufFile, name: str) -> int | None:
    return gguf.integer(f"{name}.attention.sliding_window", 0, low=0) or None


def _placements(shape: Shape) -> Iterator[Placement]:
    table, surplus = (shape.vocabulary, shape.hidden), shape.architecture.adds_to_norms
    yield Placement("token_embd.weight", "model.embed_tokens.weight", table)
    for layer in range(shape.layers):
        yield from _layer_placements(shape, layer)
    yield Placement("output_norm.weight", "model.norm.weight", (shape.hidden,), surplus=surplus)
    if not shape.is_tied:
        yield Placement("output.weight", "lm_head.weight", table)


def _layer_placements(shape: Shape, layer: int) -> Iterator[Placement]:
    architecture, sizes = shape.architecture, _sizes(shape)
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
    for source, target in architecture.layer.items():
        here, there = f"blk.{layer}.{source}", f"model.layers.{layer}.{target}"
        pairs = heads.get(source) if architecture.has_neighbouring_pairs else None
        surplus = architecture.adds_to_norms if source.endswith("norm") else 0.0
        yield Placement(f"{here}.weight", f"{there}.weight", sizes[source], pairs, surplus)
        if source in architecture.biases:
            yield Placement(f"{here}.bias", f"{there}.bias", sizes[source][:1], pairs)


def _sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, wide = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    is_fused = "attn_qkv" in shape.architecture.layer
    return {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_qkv": (queries + 2 * keys, hidden),
        "attn_output": (hidden, queries),
        "attn_q_norm": (shape.head_dim,),
        "attn_k_norm": (shape.head_dim,),
        "ffn_gate": (wide, hidden),
        "ffn_up": (2 * wide if is_fused else wide, hidden),  # of Phi-3 it is gate and up
        "ffn_down": (hidden, wide),
        **dict.fromkeys(
            ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"), (hidden,)
        ),
    }
