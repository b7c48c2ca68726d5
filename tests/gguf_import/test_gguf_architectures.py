"""Every architecture that can be imported: its folder computes what the model it came from does."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from infra.errors import PlatformError, SourceInvalid, UnsupportedModel
from tests.engine.test_transformers import our_logits
from tests.engine.tiny import load_model
from tests.gguf_import.tiny import tokenizer_keys, write_file
from worker.models.config import read_config
from worker.weights.gguf_import import import_gguf

PROMPT = [1, 70, 80, 5, 200, 2, 9] * 12  # longer than the windows
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 64,
    "rope_theta": 1e4,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 1e6,
}
GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

CASES = [
    pytest.param("llama", "Mistral", {"sliding_window": None}, {}, id="mistral"),
    pytest.param("qwen2", "Qwen2", {"tie_word_embeddings": True}, {}, id="qwen 2 tied"),
    pytest.param(
        "qwen2",
        "Qwen2",
        {"rope_parameters": YARN},
        {
            "rope.freq_base": 1e6,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
        id="qwen 2 stretched",
    ),
    pytest.param("qwen3", "Qwen3", {"head_dim": 32}, {"attention.key_length": 32}, id="qwen 3"),
    pytest.param(
        "phi3", "Phi3", {"sliding_window": 37}, {"attention.sliding_window": 37}, id="phi 3"
    ),
    pytest.param(
        "phi3",
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
        {"rope.dimension_count": 16, "rope.scaling.original_context_length": 64},
        id="phi 3 for long contexts",
    ),
    pytest.param(
        "phi3",
        "Phi3",
        {"partial_rotary_factor": 0.5},
        {"rope.dimension_count": 8},
        id="phi 3 rotated in part",
    ),
    pytest.param(
        "gemma2",
        "Gemma2",
        {"head_dim": 32, "sliding_window": 37, "query_pre_attn_scalar": 32},
        {
            "attention.key_length": 32,
            "attention.sliding_window": 37,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        id="gemma 2",
    ),
    pytest.param(
        "gemma3",
        "Gemma3",
        {
            "head_dim": 32,
            "sliding_window": 37,
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 7,  # the sixth has no window
            "rope_parameters": GEMMA3_ROPES,
        },
        {
            "attention.key_length": 32,
            "attention.sliding_window": 37,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        id="gemma 3",
    ),
]


@pytest.mark.real
@pytest.mark.parametrize(("architecture", "family", "config", "keys"), CASES)
def test_the_folder_computes_what_the_model_it_came_from_does(
    tmp_path: Path, architecture: str, family: str, config: dict[str, Any], keys: dict[str, Any]
) -> None:
    original = write_family(tmp_path / "original", family, config)
    source = converted(original, tmp_path / "model.gguf", architecture, keys)

    import_gguf(source, tmp_path / "imported", lambda fraction, step: None)

    expected = our_logits(load_model(original), PROMPT)
    assert torch.equal(our_logits(load_model(tmp_path / "imported"), PROMPT), expected)


def write_family(folder: Path, family: str, changes: dict[str, Any]) -> Path:
    """A random model of theirs in bfloat16, no parameter at the value it begins with."""
    import transformers

    vocabulary = len(tokenizer_keys()["tokenizer.ggml.tokens"])
    suffix = "TextConfig" if family == "Gemma3" else "Config"
    sizes = SIZES | {"vocab_size": vocabulary, "num_hidden_layers": 2} | changes
    config = getattr(transformers, f"{family}{suffix}")(**sizes)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.15 if parameter.dim() > 1 else parameter + noise * 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def converted(folder: Path, path: Path, architecture: str, keys: dict[str, Any]) -> Path:
    """As llama.cpp's converter does it: names by the gguf package's own table."""
    config = read_config(folder)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_layers,
    )
    metadata: dict[str, Any] = {
        "context_length": 256,
        "embedding_length": 64,
        "block_count": config.num_layers,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | keys
    tensors: dict[str, np.ndarray] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        values = weight.float().numpy()
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = 4 if "q_proj" in name else 2
            halves = values.reshape(heads, 2, -1, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        tensors[found] = values
    if architecture == "phi3" and config.ropes[0].scaling is not None:
        for name in ("short", "long"):
            factors = np.array(LONGROPE[f"{name}_factor"], np.float32)
            tensors[f"rope_factors_{name}.weight"] = factors
    own = {f"{architecture}.{key}": value for key, value in metadata.items()}
    return write_file(path, architecture, own | tokenizer_keys(), tensors)


@pytest.mark.parametrize(
    ("architecture", "keys", "error", "words"),
    [
        ("mamba", {}, UnsupportedModel, "'mamba' cannot be imported"),
        ("qwen2", {"qwen2.attention.sliding_window": 9}, UnsupportedModel, "is not understood"),
        ("qwen3", {"qwen3.rope.dimension_count": 8}, UnsupportedModel, "differs from the head"),
        ("phi3", {"phi3.rope.scaling.type": "yarn"}, UnsupportedModel, "'yarn'"),
        ("gemma2", {}, SourceInvalid, "post_attention_norm.weight is missing"),
    ],
)
def test_what_is_no_such_model_is_refused(
    tmp_path: Path, architecture: str, keys: dict[str, Any], error: type[PlatformError], words: str
) -> None:
    sizes = {
        "context_length": 256,
        "embedding_length": 64,
        "block_count": 1,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    tokens = tokenizer_keys()
    table = np.zeros((len(tokens["tokenizer.ggml.tokens"]), 64), np.float32)
    norm = np.ones(64, np.float32)
    tensors = {"token_embd.weight": table, "blk.0.attn_norm.weight": norm}
    own = {f"{architecture}.{key}": value for key, value in sizes.items()} | keys
    source = write_file(tmp_path / "m.gguf", architecture, own | tokens, tensors)

    with pytest.raises(error, match=words):
        import_gguf(source, tmp_path / "model", lambda fraction, step: None)
