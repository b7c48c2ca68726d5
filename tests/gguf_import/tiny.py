"""A maker of small llama GGUFs, valid until a test changes one thing."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.gguf_import.reference import byte_alphabet

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = (
    "the cat sat on the mat and the other cat sat there 1234 5678 12 don't DON'T we'll    def f(x):"
    "\n\n    return x + 1\r\n\t中文 中文 🎉🎉 naïve café"
)


@cache
def trained(text: str, merges: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A byte-level BPE vocabulary and its merges, from the pairs of `text` seen most."""
    tokens = [*SPECIAL, *byte_alphabet().values()]
    words = [[byte_alphabet()[byte] for byte in word.encode()] for word in text.split(" ")]
    words += [["Ġ", *word] for word in words]
    rules: list[str] = []
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in pairwise(word)).most_common()
        best = next((pair for pair, _ in pairs if "".join(pair) not in tokens), None)
        if best is None:
            break
        rules.append(" ".join(best))
        tokens.append("".join(best))
        for word in words:
            for at in range(len(word) - 2, -1, -1):
                if tuple(word[at : at + 2]) == best:
                    word[at : at + 2] = ["".join(best)]
    return tuple(tokens), tuple(rules)


def shapes(*, rows: int, tied: bool, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a model with 64 hidden values, 4 heads of 16 and 2 key-value heads."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, 64)}
    for layer in range(layers):
        found |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (64,),
                "attn_q": (64, 64),
                "attn_k": (32, 64),
                "attn_v": (32, 64),
                "attn_output": (64, 64),
                "ffn_norm": (64,),
                "ffn_gate": (96, 64),
                "ffn_up": (96, 64),
                "ffn_down": (64, 96),
            }.items()
        }
    found["output_norm.weight"] = (64,)
    return found if tied else found | {"output.weight": (rows, 64)}


def tensors(*, rows: int, tied: bool = True) -> dict[str, np.ndarray]:
    """Random weights, the same every time."""
    random = np.random.default_rng(7)
    return {
        name: (
            1 + random.normal(0, 0.1, shape) if "norm" in name else random.normal(0, 0.3, shape)
        ).astype(np.float32)
        for name, shape in shapes(rows=rows, tied=tied).items()
    }


def write_gguf(
    path: Path,
    *,
    encoding: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    keys: dict[str, Any] | None = None,
    changed: dict[str, np.ndarray | None] | None = None,
    pre: str = "smollm",
    tied: bool = True,
) -> Path:
    """Writes a model; `keys` and `changed` replace metadata and tensors, None leaves them out."""
    metadata: dict[str, Any] = {
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
    }
    metadata |= tokenizer_keys(pre) | (keys or {})
    rows = len(trained(TEXT, 120)[0])
    values = tensors(rows=rows, tied=tied) | (changed or {})
    architecture = metadata.pop("general.architecture", "llama")
    return write_file(path, architecture, metadata, values, encoding=encoding)


def tokenizer_keys(pre: str = "smollm") -> dict[str, Any]:
    """A byte-level BPE tokenizer."""
    tokens, merges = trained(TEXT, 120)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }


def sentencepiece_keys(*, has_prefix: bool = True) -> dict[str, Any]:
    """A SentencePiece tokenizer: letters and pairs of `TEXT` with scores, and bytes."""
    control = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [["\u2581", *word] for word in TEXT.split(" ") if word]
    pieces: list[str] = []
    for _ in range(80):
        pairs = Counter(pair for word in words for pair in pairwise(word)).most_common()
        best = next((pair for pair, _ in pairs if "".join(pair) not in pieces), None)
        if best is None:
            break
        pieces.append("".join(best))
        for word in words:
            for at in range(len(word) - 2, -1, -1):
                if tuple(word[at : at + 2]) == best:
                    word[at : at + 2] = ["".join(best)]
    pieces += sorted({*"\u2581abcdefghijklmnopqrstuvwxyz0123.", *"".join(pieces)})
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*control, *pieces],
        "tokenizer.ggml.scores": [0.0] * len(control) + [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": has_prefix,
    }


def write_file(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | None],
    *,
    encoding: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """Writes metadata and tensors, those that are not None."""
    writer = gguf.GGUFWriter(path, arch=architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, values in tensors.items():
        if values is None:
            continue
        plain = values.ndim == 1
        kind = gguf.GGMLQuantizationType.F32 if plain else encoding
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value))
