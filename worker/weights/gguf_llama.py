"""What the keys and tensors of a llama-architecture GGUF are called in a Hugging Face folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from typing import Any, Final

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.gguf_file import GgufFile, GgufTensor
from worker.weights.safetensors_writer import PlannedTensor

ARCHITECTURE: Final = "llama"
KNOWN_KEYS: Final = frozenset(
    f"llama.{key}"
    for key in (
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
CHUNK_ELEMENTS: Final = 8 << 20  # 32 MB as float32: what a conversion holds at a time

# Llama 3.1 and 3.2 stretch rotary frequencies by these rules, and a GGUF keeps only the result.
LLAMA3_LOW_FREQUENCY: Final = 1.0
LLAMA3_HIGH_FREQUENCY: Final = 4.0
LLAMA3_ORIGINAL_CONTEXT: Final = 8192


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The sizes of a llama model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    vocabulary: int
    norm_epsilon: float
    rope_base: float
    rope_scaling: dict[str, Any] | None
    is_tied: bool  # the output projection is the embedding


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where one tensor comes from and what it becomes; `interleaved_heads` are undone."""

    source: str
    target: str
    shape: tuple[int, ...]
    interleaved_heads: int | None = None


def read_shape(gguf: GgufFile) -> LlamaShape:
    """The model's sizes; raises UnsupportedModel for what is no plain dense llama."""
    _check_architecture(gguf)
    hidden = gguf.integer("llama.embedding_length", high=1 << 20)
    heads = gguf.integer("llama.attention.head_count", high=4096)
    head_dim = gguf.integer("llama.attention.key_length", hidden // heads, high=4096)
    shape = LlamaShape(
        layers=gguf.integer("llama.block_count", high=4096),
        hidden=hidden,
        intermediate=gguf.integer("llama.feed_forward_length", high=1 << 22),
        heads=heads,
        kv_heads=gguf.integer("llama.attention.head_count_kv", heads, high=4096),
        head_dim=head_dim,
        context_tokens=gguf.integer("llama.context_length", high=1 << 28),
        vocabulary=_embedding_rows(gguf, hidden),
        norm_epsilon=gguf.number("llama.attention.layer_norm_rms_epsilon"),
        rope_base=gguf.number("llama.rope.freq_base", 10_000.0),
        rope_scaling=_rope_scaling(gguf, head_dim),
        is_tied="output.weight" not in gguf.tensors,
    )
    _check_heads(gguf, shape)
    return shape


def model_config(shape: LlamaShape, *, bos: int | None, eos: int | None) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context_tokens,
        "mlp_bias": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_scaling": shape.rope_scaling,
        "rope_theta": shape.rope_base,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def plan_tensors(gguf: GgufFile, shape: LlamaShape) -> list[PlannedTensor]:
    """Every tensor of the model in the order a forward pass uses them.

    Raises SourceInvalid when one is missing or has another shape, UnsupportedModel when there are
    tensors that a dense llama does not have.
    """
    placements = list(_placements(shape))
    _check_names(gguf, {placement.source for placement in placements} | {"rope_freqs.weight"})
    return [_planned(gguf, placement) for placement in placements]


def _check_architecture(gguf: GgufFile) -> None:
    architecture = gguf.text("general.architecture")
    if architecture != ARCHITECTURE:
        raise UnsupportedModel(
            f"{gguf.path.name}: architecture {architecture!r} cannot be imported",
            hint="GGUF files of the llama architecture can",
        )
    unknown = sorted(
        key for key in gguf.metadata if key.startswith("llama.") and key not in KNOWN_KEYS
    )
    if unknown:
        raise UnsupportedModel(f"{gguf.path.name}: {', '.join(unknown[:8])} is not understood")
    if gguf.integer("llama.expert_count", 0, low=0):
        raise UnsupportedModel(f"{gguf.path.name}: mixtures of experts cannot be imported")


def _check_heads(gguf: GgufFile, shape: LlamaShape) -> None:
    if shape.head_dim % 2 or shape.heads % shape.kv_heads:
        raise SourceInvalid(
            f"{gguf.path.name}: {shape.heads} heads of {shape.head_dim} over {shape.kv_heads} "
            "key-value heads do not divide"
        )
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if gguf.integer(key, shape.head_dim) != shape.head_dim:
            raise UnsupportedModel(f"{gguf.path.name}: {key} differs from the head size")


def _embedding_rows(gguf: GgufFile, hidden: int) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        raise SourceInvalid(f"{gguf.path.name}: token_embd.weight is missing or misshapen")
    return embedding.shape[0]


def _rope_scaling(gguf: GgufFile, head_dim: int) -> dict[str, Any] | None:
    kind = gguf.text("llama.rope.scaling.type", "none")
    stretch = gguf.tensors.get("rope_freqs.weight")
    match kind, stretch:
        case "none", None:
            return None
        case "none", GgufTensor() as tensor:
            return _llama3_scaling(gguf, tensor, head_dim)
        case "linear", None:
            return {"rope_type": "linear", "factor": gguf.number("llama.rope.scaling.factor")}
        case _:
            raise UnsupportedModel(f"{gguf.path.name}: rope scaling {kind!r} cannot be imported")


def _llama3_scaling(gguf: GgufFile, tensor: GgufTensor, head_dim: int) -> dict[str, Any]:
    """Recovers Llama 3.1's rule from its table, and proves that it gives the same table."""
    if tensor.shape != (head_dim // 2,):
        raise SourceInvalid(f"{gguf.path.name}: rope_freqs.weight is misshapen")
    table = _decoded(gguf, tensor, gguf.packed_rows(tensor)).ravel()
    factor = float(table.max())
    if not np.allclose(table, _llama3_table(gguf, head_dim, factor), rtol=1e-4):
        raise UnsupportedModel(f"{gguf.path.name}: its rotary frequencies follow no known rule")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW_FREQUENCY,
        "high_freq_factor": LLAMA3_HIGH_FREQUENCY,
        "original_max_position_embeddings": LLAMA3_ORIGINAL_CONTEXT,
    }


def _llama3_table(gguf: GgufFile, head_dim: int, factor: float) -> NDArray[np.float64]:
    """By how much each rotary frequency is divided: [head_dim / 2]."""
    base = gguf.number("llama.rope.freq_base", 10_000.0)
    wavelengths = 2 * pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = LLAMA3_ORIGINAL_CONTEXT / wavelengths
    smooth = (turns - LLAMA3_LOW_FREQUENCY) / (LLAMA3_HIGH_FREQUENCY - LLAMA3_LOW_FREQUENCY)
    smooth = np.clip(smooth, 0.0, 1.0)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def _placements(shape: LlamaShape) -> Iterator[_Placement]:
    hidden = shape.hidden
    yield _Placement("token_embd.weight", "model.embed_tokens.weight", (shape.vocabulary, hidden))
    for layer in range(shape.layers):
        yield from _layer_placements(shape, layer)
    yield _Placement("output_norm.weight", "model.norm.weight", (hidden,))
    if not shape.is_tied:
        yield _Placement("output.weight", "lm_head.weight", (shape.vocabulary, hidden))


def _layer_placements(shape: LlamaShape, layer: int) -> Iterator[_Placement]:
    hidden, wide = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for source, target, size, heads in (
        ("attn_norm", "input_layernorm", (hidden,), None),
        ("attn_q", "self_attn.q_proj", (queries, hidden), shape.heads),
        ("attn_k", "self_attn.k_proj", (keys, hidden), shape.kv_heads),
        ("attn_v", "self_attn.v_proj", (keys, hidden), None),
        ("attn_output", "self_attn.o_proj", (hidden, queries), None),
        ("ffn_norm", "post_attention_layernorm", (hidden,), None),
        ("ffn_gate", "mlp.gate_proj", (wide, hidden), None),
        ("ffn_up", "mlp.up_proj", (wide, hidden), None),
        ("ffn_down", "mlp.down_proj", (hidden, wide), None),
    ):
        yield _Placement(
            f"blk.{layer}.{source}.weight", f"model.layers.{layer}.{target}.weight", size, heads
        )


def _check_names(gguf: GgufFile, known: set[str]) -> None:
    extra = sorted(set(gguf.tensors) - known)
    if extra:
        raise UnsupportedModel(
            f"{gguf.path.name} has {len(extra)} tensors that a dense llama does not have: "
            + ", ".join(extra[:4])
        )


def _planned(gguf: GgufFile, placement: _Placement) -> PlannedTensor:
    tensor = gguf.tensors.get(placement.source)
    if tensor is None:
        raise SourceInvalid(f"{gguf.path.name}: tensor {placement.source} is missing")
    if tensor.shape != placement.shape:
        raise SourceInvalid(
            f"{gguf.path.name}: tensor {tensor.name} has shape {list(tensor.shape)}, "
            f"expected {list(placement.shape)}"
        )
    order = _row_order(tensor.rows, placement.interleaved_heads)
    return PlannedTensor(
        name=placement.target,
        shape=placement.shape,
        chunks=lambda: _chunks(gguf, tensor, order),
    )


def _row_order(rows: int, heads: int | None) -> NDArray[np.int64]:
    """Which stored row becomes row i.

    GGUF keeps the two halves of a rotary pair side by side (0, d/2, 1, d/2 + 1 ...) where Hugging
    Face keeps them half a head apart.
    """
    order = np.arange(rows)
    if heads is None:
        return order
    return order.reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _chunks(
    gguf: GgufFile, tensor: GgufTensor, order: NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    packed = gguf.packed_rows(tensor)
    step = max(1, CHUNK_ELEMENTS // tensor.shape[-1])
    for start in range(0, len(order), step):
        values = _decoded(gguf, tensor, packed[order[start : start + step]])
        if not np.isfinite(values).all():
            raise SourceInvalid(f"{gguf.path.name}: tensor {tensor.name} is not finite")
        yield values


def _decoded(gguf: GgufFile, tensor: GgufTensor, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    try:
        return dequantize(packed, tensor.encoding)
    except NotImplementedError:
        raise UnsupportedModel(
            f"{gguf.path.name}: tensor {tensor.name} is {tensor.encoding.name}, "
            "which cannot be unpacked"
        ) from None
