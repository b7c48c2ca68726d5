"""Reading config.json with suspicion."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import PlatformError, SourceInvalid, UnsupportedModel
from tests.engine.tiny import CONFIG
from worker.models.config import LayerConfig, ModelConfig, parse_config, read_config
from worker.models.rope_config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    Rope,
    YarnScaling,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_a_whole_config() -> None:
    assert parse_config(CONFIG) == ModelConfig(
        architecture="LlamaForCausalLM",
        vocabulary=160,
        hidden_size=64,
        intermediate_size=96,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        rotary_dim=16,
        rms_norm_epsilon=1e-5,
        ropes=(Rope(10_000.0, None),),
        layers=(LayerConfig(None), LayerConfig(None)),
        context_tokens=1024,
        ties_embeddings=True,
        has_query_key_value_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        dtype="bfloat16",
        scheme=None,
        attention_scale=0.25,
    )


def test_what_old_configs_leave_out_has_the_defaults_of_their_time() -> None:
    old = {
        key: value
        for key, value in CONFIG.items()
        if key not in {"head_dim", "num_key_value_heads", "rope_theta", "torch_dtype"}
    }
    config = parse_config(old | {"num_attention_heads": 4})
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert config.ropes == (Rope(10_000.0, None),)
    assert config.dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope_scaling": None, "rope_theta": 5e5}, Rope(5e5, None)),
        ({"rope_scaling": {"rope_type": "default"}}, Rope(1e4, None)),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, Rope(1e4, LinearScaling(4.0))),
        ({"rope_scaling": LLAMA3}, Rope(1e4, Llama3Scaling(8.0, 1.0, 4.0, 8192))),
        (
            {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
            Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, Rope(1e6, None)),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, Rope(1e4, DynamicScaling(2.0, 1024))),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4,
                    "original_max_position_embeddings": 512,
                    "attention_factor": 1.5,
                }
            },
            Rope(1e4, YarnScaling(4.0, 512, 1.5)),
        ),
    ],
)
def test_both_spellings_of_rope(changes: dict[str, Any], rope: Rope) -> None:
    assert parse_config(CONFIG | changes).ropes == (rope,)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 0},
        {"hidden_size": -1},
        {"hidden_size": 1 << 40},
        {"hidden_size": "64"},
        {"hidden_size": 64.0},
        {"hidden_size": True},
        {"vocab_size": None},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 7},
        {"head_dim": 15},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": "1e-5"},
        {"rope_theta": 0},
        {"rope_theta": float("inf")},
        {"rope_theta": float("nan")},
        {"rope_scaling": "linear"},
        {"rope_scaling": {"type": 3}},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": 0}},
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        {"tie_word_embeddings": "yes"},
        {"architectures": None},
        {"architectures": []},
        {"architectures": "LlamaForCausalLM"},
        {"max_position_embeddings": -5},
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SourceInvalid):
        parse_config(CONFIG | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["MambaForCausalLM"]},
        {"hidden_act": "gelu"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"rope_scaling": {"type": "longrope", "factor": 4}},
        {"partial_rotary_factor": 0.5},
        {"torch_dtype": "int4"},
        {"torch_dtype": 7},
    ],
)
def test_what_this_engine_does_not_compute_is_said_to_be_unsupported(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(UnsupportedModel):
        parse_config(CONFIG | changes)


@given(
    st.dictionaries(
        st.sampled_from([*CONFIG, "rope_scaling", "rope_parameters", "dtype"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    )
)
def test_no_config_makes_anything_but_a_typed_error(changes: dict[str, Any]) -> None:
    with contextlib.suppress(PlatformError):
        parse_config(CONFIG | changes)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match=r"config\.json is missing"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(SourceInvalid, match="not valid JSON"):
        read_config(tmp_path)
    path.write_text(" " * (5 << 20) + json.dumps(CONFIG))
    with pytest.raises(SourceInvalid, match="bytes"):
        read_config(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SourceInvalid, match="regular file"):
        read_config(tmp_path)
