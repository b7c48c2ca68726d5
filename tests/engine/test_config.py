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
from worker.models.families import FAMILIES
from worker.models.rope_config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
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

OF_FAMILIES = (
    "attn_logit_softcapping",
    "dtype",
    "final_logit_softcapping",
    "hidden_activation",
    "layer_types",
    "max_window_layers",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
)


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
        {"rope_scaling": {"type": "stretched", "factor": 4}},
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


def shape_of(**values: Any) -> ModelConfig:
    """Of the numbers that every config has, and these."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 160,
    }
    return parse_config(sizes | values)


def windows(config: ModelConfig) -> list[int | None]:
    return [layer.window for layer in config.layers]


def test_gemma_3_as_it_was_published() -> None:
    config = shape_of(
        architectures=["Gemma3ForCausalLM"],
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=64,
        rope_local_base_freq=10000,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        rope_theta=1000000,
        sliding_window=512,
        sliding_window_pattern=6,
        torch_dtype="bfloat16",
    )
    assert config.ropes == (Rope(1e6, LinearScaling(8.0)), Rope(1e4, None))
    assert config.layers == (
        *[LayerConfig(512, 1)] * 5,
        LayerConfig(None, 0),
        LayerConfig(512, 1),
    )
    assert (config.head_dim, config.attention_scale, config.embedding_scale) == (256, 0.125, 8.0)
    assert (config.ties_embeddings, config.has_head_norms, config.has_post_norms) == (True,) * 3
    assert (config.attention_softcap, config.final_softcap) == (None, None)
    assert (config.activation, config.norm_offset) == ("gelu_tanh", 1.0)


def test_gemma_3_as_transformers_5_writes_it() -> None:
    config = shape_of(
        architectures=["Gemma3ForCausalLM"],
        dtype="bfloat16",
        layer_types=["sliding_attention", "full_attention"] * 3 + ["sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
        sliding_window=128,
    )
    assert config.ropes == (Rope(5e5, None), Rope(2e4, None))
    assert config.layers == (LayerConfig(128, 1), LayerConfig(None, 0)) * 3 + (LayerConfig(128, 1),)
    assert config.dtype == "bfloat16"


def test_gemma_2_has_caps_and_every_other_layer_a_window() -> None:
    config = shape_of(architectures=["Gemma2ForCausalLM"], hidden_act="gelu_pytorch_tanh")
    assert windows(config) == [4096, None] * 3 + [4096]
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)
    assert (config.attention_scale, config.has_head_norms) == (1 / 16, False)


def test_qwen_has_windows_only_where_they_are_used() -> None:
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "max_window_layers": 5}
    assert windows(shape_of(**qwen)) == [None] * 7
    config = shape_of(**qwen, use_sliding_window=True)
    assert windows(config) == [None] * 5 + [64] * 2
    assert (config.has_query_key_value_bias, config.has_output_bias) == (True, False)


def test_mistral_and_phi_have_the_window_everywhere_or_nowhere() -> None:
    for architecture in ("MistralForCausalLM", "Phi3ForCausalLM"):
        config = shape_of(architectures=[architecture], sliding_window=2047)
        assert windows(config) == [2047] * 7
        assert windows(shape_of(architectures=[architecture], sliding_window=None)) == [None] * 7


def long_rope(**changes: Any) -> dict[str, Any]:
    """As Phi-3's files have it, for heads of 16 channels."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [1, 2, 3, 4, 5, 6, 7, 8.5]}
    return {
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope"} | factors | changes,
    }


@pytest.mark.parametrize(
    ("changes", "magnitude"),
    [
        pytest.param({}, 1.190238, id="by how far it is stretched"),
        pytest.param({"type": "su"}, 1.190238, id="Phi-3's first name for it"),
        pytest.param({"attention_factor": 1.25}, 1.25, id="given"),
        pytest.param({"factor": 1.0}, 1.0, id="not stretched"),
    ],
)
def test_each_channel_may_have_its_own_factor(changes: dict[str, Any], magnitude: float) -> None:
    config = parse_config(CONFIG | {"architectures": ["Phi3ForCausalLM"]} | long_rope(**changes))
    scaling = config.ropes[0].scaling
    assert isinstance(scaling, LongRopeScaling)
    assert scaling.magnitude == pytest.approx(magnitude, abs=1e-6)
    assert scaling.short_factors == (1,) * 8
    assert scaling.long_factors == (1, 2, 3, 4, 5, 6, 7, 8.5)
    assert (scaling.original_context_tokens, config.context_tokens) == (4096, 131_072)


def test_a_stretched_model_has_the_stretched_context() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    llama = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 32768}
    assert shape_of(**llama, rope_scaling=yarn).context_tokens == 131_072
    dynamic = {"type": "dynamic", "factor": 2.0}
    assert shape_of(**llama, rope_scaling=dynamic).context_tokens == 65_536
    assert shape_of(**llama, rope_scaling=dynamic | {"factor": 1e6}).context_tokens == 1 << 27


@pytest.mark.parametrize(
    ("architecture", "changes", "error"),
    [
        ("Phi3", {"partial_rotary_factor": 0.1}, SourceInvalid),
        ("Phi3", {"partial_rotary_factor": 0}, SourceInvalid),
        ("Phi3", {"partial_rotary_factor": float("nan")}, SourceInvalid),
        ("Phi3", {"rope_scaling": {"type": "longrope"}}, SourceInvalid),
        ("Phi3", long_rope(long_factor=[1.0] * 3), SourceInvalid),
        ("Phi3", long_rope(short_factor=[1.0] * 7 + [0]), SourceInvalid),
        ("Phi3", long_rope(short_factor=[1.0] * 7 + ["1"]), SourceInvalid),
        ("Phi3", long_rope(short_factor=8), SourceInvalid),
        ("Phi3", long_rope() | {"partial_rotary_factor": 0.5}, SourceInvalid),
        ("Phi3", long_rope() | {"original_max_position_embeddings": 0}, SourceInvalid),
        ("Gemma2", {"query_pre_attn_scalar": 0}, SourceInvalid),
        ("Gemma2", {"final_logit_softcapping": 0}, SourceInvalid),
        ("Gemma2", {"sliding_window": 0}, SourceInvalid),
        ("Gemma2", {"layer_types": ["full_attention"]}, SourceInvalid),
        ("Gemma2", {"layer_types": ["linear_attention"] * 7}, SourceInvalid),
        ("Gemma2", {"use_bidirectional_attention": True}, UnsupportedModel),
        ("Gemma3", {"sliding_window_pattern": 0}, SourceInvalid),
        ("Gemma3", {"attn_logit_softcapping": 50.0}, UnsupportedModel),
        ("Gemma3", {"rope_parameters": {"sliding_attention": 3}}, SourceInvalid),
        ("Qwen2", {"use_sliding_window": 1}, SourceInvalid),
        ("Llama", {"rope_scaling": {"type": "yarn", "factor": 0.5}}, SourceInvalid),
        ("Llama", {"rope_scaling": {"type": "yarn", "factor": 4}, "rope_theta": 1}, SourceInvalid),
        ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2}, "head_dim": 2}, SourceInvalid),
    ],
)
def test_nonsense_of_one_family_is_refused(
    architecture: str, changes: dict[str, Any], error: type[PlatformError]
) -> None:
    with pytest.raises(error):
        shape_of(architectures=[f"{architecture}ForCausalLM"], **changes)


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.dictionaries(
        st.sampled_from([*CONFIG, *OF_FAMILIES]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    ),
)
def test_no_config_makes_anything_but_a_typed_error(
    architecture: str, changes: dict[str, Any]
) -> None:
    with contextlib.suppress(PlatformError):
        parse_config(CONFIG | {"architectures": [architecture]} | changes)


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
