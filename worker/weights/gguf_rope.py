"""How a GGUF says that rotary positions are stretched, as config.json says it."""

from math import pi
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infra.errors import UnsupportedModel
from worker.weights.gguf_file import GgufFile, GgufTensor
from worker.weights.gguf_tensors import vector

# Tensors that belong to no layer, and of which no folder has a copy.
TABLES: Final = frozenset(
    {"rope_freqs.weight", *(f"rope_factors_{n}.weight" for n in ("long", "short"))}
)

# Llama 3.1 and 3.2 stretch rotary frequencies by these rules, and a GGUF keeps only the result.
LLAMA3_LOW_FREQUENCY: Final = 1.0
LLAMA3_HIGH_FREQUENCY: Final = 4.0
LLAMA3_ORIGINAL_CONTEXT: Final = 8192


def rope_scaling(
    gguf: GgufFile, architecture: str, *, rotary_dim: int, base: float
) -> dict[str, Any] | None:
    """Raises UnsupportedModel for what is not one of the known rules."""
    key = f"{architecture}.rope.scaling"
    kind = gguf.text(f"{key}.type", "none")
    tables = TABLES & gguf.tensors.keys()
    match architecture, kind, sorted(tables):
        case _, "none", []:
            return None
        case "llama", "none", ["rope_freqs.weight"]:
            return _llama3(gguf, gguf.tensors["rope_freqs.weight"], rotary_dim, base)
        case _, "linear", []:
            return {"rope_type": "linear", "factor": gguf.number(f"{key}.factor")}
        case "qwen2" | "qwen3", "yarn", []:
            return {
                "rope_type": "yarn",
                "factor": gguf.number(f"{key}.factor"),
                "original_max_position_embeddings": _original_context(gguf, key),
            }
        case "phi3", "none" | "longrope", ["rope_factors_long.weight", "rope_factors_short.weight"]:
            return _longrope(gguf, key, rotary_dim)
        case _:
            raise UnsupportedModel(
                f"{gguf.path.name}: rope scaling {kind!r} cannot be imported"
                + (f" with {', '.join(sorted(tables))}" if tables else "")
            )


def _original_context(gguf: GgufFile, key: str) -> int:
    return gguf.integer(f"{key}.original_context_length", high=1 << 28)


def _longrope(gguf: GgufFile, key: str, rotary_dim: int) -> dict[str, Any]:
    factors = {
        name: vector(gguf, gguf.tensors[f"rope_factors_{name}.weight"], rotary_dim // 2)
        for name in ("short", "long")
    }
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "original_max_position_embeddings": _original_context(gguf, key),
        **{f"{name}_factor": list(map(float, found)) for name, found in factors.items()},
    }
    if f"{key}.attn_factor" in gguf.metadata:
        scaling["attention_factor"] = gguf.number(f"{key}.attn_factor")
    return scaling


def _llama3(gguf: GgufFile, tensor: GgufTensor, rotary_dim: int, base: float) -> dict[str, Any]:
    """Recovers Llama 3.1's rule from its table, and proves that it gives the same table."""
    table = vector(gguf, tensor, rotary_dim // 2)
    factor = float(table.max())
    if not np.allclose(table, _llama3_table(rotary_dim, base, factor), rtol=1e-4):
        raise UnsupportedModel(f"{gguf.path.name}: its rotary frequencies follow no known rule")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW_FREQUENCY,
        "high_freq_factor": LLAMA3_HIGH_FREQUENCY,
        "original_max_position_embeddings": LLAMA3_ORIGINAL_CONTEXT,
    }


def _llama3_table(rotary_dim: int, base: float, factor: float) -> NDArray[np.float64]:
    """By how much each rotary frequency is divided: [rotary_dim / 2]."""
    wavelengths = 2 * pi * base ** (np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    turns = LLAMA3_ORIGINAL_CONTEXT / wavelengths
    smooth = (turns - LLAMA3_LOW_FREQUENCY) / (LLAMA3_HIGH_FREQUENCY - LLAMA3_LOW_FREQUENCY)
    smooth = np.clip(smooth, 0.0, 1.0)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors
