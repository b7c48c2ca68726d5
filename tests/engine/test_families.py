"""Every architecture beside Hugging Face's, on small random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from tests.engine.flex import flex_model
from tests.engine.test_embeddings import embedding, vector_of
from tests.engine.test_embeddings import run as embedded
from tests.engine.test_transformers import PROMPT, their_logits, their_vector, theirs
from tests.engine.test_transformers import our_logits as logits_of
from tests.engine.tiny import greedy_alone, load_model, make_engine, request, run
from tests.support.native import native
from worker.engine.request import Pooling

pytestmark = pytest.mark.real

CONTEXT = PROMPT * 30  # longer than the windows, and than a tile of torch's keys
SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "rope_theta": 1e4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
WINDOW = {"sliding_window": 37}
GEMMA3 = {"head_dim": 16, "sliding_window_pattern": 3, **WINDOW}

CASES = [
    pytest.param("Llama", {}, id="llama"),
    pytest.param("Llama", {"rope_parameters": YARN, "tie_word_embeddings": True}, id="yarn"),
    pytest.param(
        "Llama",
        {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 8.0}},
        id="yarn 2",
    ),
    pytest.param("Llama", {"rope_parameters": LLAMA3, "attention_bias": True}, id="llama 3"),
    pytest.param("Llama", {"rope_parameters": LINEAR, "mlp_bias": True}, id="linear"),
    pytest.param("Mistral", {"sliding_window": None}, id="mistral"),
    pytest.param("Mistral", {**WINDOW, "head_dim": 32}, id="mistral with a window"),
    pytest.param("Mistral", {**WINDOW, "num_key_value_heads": 1}, id="mistral with one key head"),
    pytest.param("Qwen2", {"tie_word_embeddings": True}, id="qwen 2"),
    pytest.param("Qwen2", {"rope_parameters": YARN}, id="qwen 2 with yarn"),
    pytest.param(
        "Qwen2", {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}, id="qwen 2 windows"
    ),
    pytest.param("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}, id="qwen 3"),
    pytest.param("Qwen3", {"head_dim": 16, "attention_bias": True}, id="qwen 3 with biases"),
    pytest.param(
        "Qwen3",
        {"head_dim": 24, "use_sliding_window": True, "max_window_layers": 2, **WINDOW},
        id="qwen 3 windows",
    ),
    pytest.param("Phi3", {}, id="phi 3"),
    pytest.param("Phi3", {**WINDOW, "num_key_value_heads": 4}, id="phi 3 with a window"),
    pytest.param("Phi3", {"partial_rotary_factor": 0.5, **WINDOW}, id="phi 3 rotated in part"),
    pytest.param("Gemma2", {"head_dim": 16, **WINDOW}, id="gemma 2"),
    pytest.param(
        "Gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            **WINDOW,
        },
        id="gemma 2 with low caps",
    ),
    pytest.param(
        "Gemma2",
        {
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            **WINDOW,
        },
        id="gemma 2 without caps",
    ),
    pytest.param("Gemma3", GEMMA3, id="gemma 3"),
    pytest.param(
        "Gemma3",
        {
            **GEMMA3,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        id="gemma 3 stretched",
    ),
]


def write_family(folder: Path, name: str, changes: dict[str, Any]) -> Path:
    """Saves a random model of theirs in shards, no parameter of it at the value it begins with."""
    import transformers

    suffix = "TextConfig" if name == "Gemma3" else "Config"
    config = getattr(transformers, f"{name}{suffix}")(**(SMALL | changes))
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 0.15)
            else:
                parameter.add_(noise * 0.1)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def our_logits(
    folder: Path, token_ids: Sequence[int], settings: EngineSettings | None = None
) -> torch.Tensor:
    return logits_of(load_model(folder, settings), token_ids)


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_logits_and_greedy_text_are_theirs(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = write_family(tmp_path, name, changes)
    reference = theirs(folder, torch.float32)
    ours = load_model(folder)

    torch.testing.assert_close(
        logits_of(ours, CONTEXT), their_logits(reference, CONTEXT), rtol=1e-4, atol=1e-4
    )

    prompt = CONTEXT[:50]
    with torch.inference_mode():
        generated = reference.generate(
            torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=None
        )
    assert greedy_alone(ours, prompt, 30) == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_vectors_are_made_of_their_hidden_states(
    tmp_path: Path, name: str, changes: dict[str, Any], pooling: Pooling
) -> None:
    folder = write_family(tmp_path, name, changes)
    reference = theirs(folder, torch.float32)
    prompts = [CONTEXT[:length] for length in (1, 50, 200)]

    engine = make_engine(load_model(folder), pooling=pooling, token_budget=64)
    told = embedded(engine, [embedding(str(len(prompt)), prompt) for prompt in prompts])

    for prompt in prompts:
        expected = their_vector(reference, prompt, pooling)
        ours = torch.tensor(vector_of(told[str(len(prompt))]))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_dynamic_positions_are_theirs_at_the_length_of_the_context(tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}
    changes = {"rope_parameters": dynamic, "max_position_embeddings": 256}
    folder = write_family(tmp_path, "Llama", changes)
    settings = EngineSettings(max_context_tokens=len(CONTEXT))
    torch.testing.assert_close(
        our_logits(folder, CONTEXT, settings),
        their_logits(theirs(folder, torch.float32), CONTEXT),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("tokens", "changes"),
    [
        pytest.param(64, {}, id="short"),
        pytest.param(65, {}, id="long"),
        pytest.param(len(CONTEXT), {"partial_rotary_factor": 0.5}, id="long, rotated in part"),
    ],
)
def test_factors_of_channels_are_theirs_on_both_sides_of_the_original_context(
    tmp_path: Path, tokens: int, changes: dict[str, Any]
) -> None:
    channels = int(8 * changes.get("partial_rotary_factor", 1))
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.1 * channel for channel in range(channels)],
        "long_factor": [1.0 + 1.7 * channel for channel in range(channels)],
    }
    changes = changes | {"rope_parameters": rope, "original_max_position_embeddings": 64}
    folder = write_family(tmp_path, "Phi3", changes)
    text = CONTEXT[:tokens]
    torch.testing.assert_close(
        our_logits(folder, text, EngineSettings(max_context_tokens=tokens)),
        their_logits(theirs(folder, torch.float32), text),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_the_kernels_for_gpus_give_the_same_logits(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = write_family(tmp_path, name, changes)
    torch.testing.assert_close(
        logits_of(flex_model(folder), CONTEXT), our_logits(folder, CONTEXT), rtol=1e-4, atol=1e-4
    )


@native
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_bfloat16_on_the_native_kernels_is_near(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = write_family(tmp_path, name, changes)
    exact = our_logits(folder, CONTEXT)
    model = load_model(folder, EngineSettings(dtype="bfloat16"))
    assert model.kernels.name.startswith("native")
    error = (logits_of(model, CONTEXT) - exact).square().mean().sqrt()
    assert float(error) < 0.03 * float(exact.std())


@native
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_layers_in_one_call_give_the_bits_of_their_operations(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    """What a model computes first is done one by one, and noted."""
    folder = write_family(tmp_path, name, changes)
    settings = EngineSettings(dtype="bfloat16")
    one_by_one = logits_of(load_model(folder, settings), CONTEXT)

    model = load_model(folder, settings)
    logits_of(model, PROMPT)
    assert torch.equal(logits_of(model, CONTEXT), one_by_one)


@native
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("Qwen3", {"head_dim": 32}, id="qwen 3"),
        pytest.param("Phi3", {"partial_rotary_factor": 0.5, **WINDOW}, id="phi 3"),
        pytest.param("Gemma2", {"head_dim": 16, **WINDOW}, id="gemma 2"),
        pytest.param("Gemma3", GEMMA3, id="gemma 3"),
    ],
)
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_text_does_not_depend_on_company(
    tmp_path: Path, name: str, changes: dict[str, Any], quantization: Any
) -> None:
    """Prompts in pieces, several sequences at once, windows that blocks fall out of."""
    folder = write_family(tmp_path, name, changes)
    model = load_model(folder, EngineSettings(dtype="bfloat16", quantization=quantization))
    prompts = {"a": CONTEXT[:200], "b": CONTEXT[7:90], "c": CONTEXT[3:20]}
    alone = {key: greedy_alone(model, prompt, 40) for key, prompt in prompts.items()}

    engine = make_engine(model, token_budget=64)
    collected = run(engine, [request(key, prompt, 40) for key, prompt in prompts.items()], every=2)

    assert {key: each.token_ids for key, each in collected.items()} == alone
