"""Our model beside Hugging Face's, on small random weights and on the real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from tests.engine.test_embeddings import embedding, run, vector_of
from tests.engine.tiny import greedy_alone, load_model, make_engine, write_model
from worker.engine.request import Pooling
from worker.kernels.port import Span
from worker.models.causal_model import CausalModel

pytestmark = pytest.mark.real

PROMPT = [3, 141, 59, 26, 5, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71, 69]
FLOAT32 = {"torch_dtype": "float32", "hidden_size": 96}  # theirs asks for a multiple of the heads
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def theirs(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


def our_logits(model: CausalModel, token_ids: Sequence[int]) -> torch.Tensor:
    blocks = range(len(token_ids) // 16 + 1)
    cache = model.allocate_cache(num_blocks=len(blocks), block_size=16)
    count = len(token_ids)
    return model.logits(token_ids, [Span(0, count, blocks)], range(count), cache).float()


@torch.inference_mode()
def their_logits(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([list(token_ids)])).logits[0].float()
    return logits


@torch.inference_mode()
def their_vector(model: Any, token_ids: Sequence[int], pooling: Pooling) -> torch.Tensor:
    """float32 [hidden], of length 1."""
    states = model.model(torch.tensor([list(token_ids)])).last_hidden_state[0].float()
    pooled = states[-1] if pooling == "last" else states.mean(dim=0)
    return torch.nn.functional.normalize(pooled, dim=0)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="grouped queries"),
        pytest.param({"tie_word_embeddings": False}, id="own head"),
        pytest.param({"num_key_value_heads": 6}, id="as many keys as queries"),
        pytest.param({"num_key_value_heads": 1}, id="one key head"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, id="biases"),
        pytest.param({"rope_scaling": LLAMA3}, id="llama 3 positions"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 4.0}}, id="linear positions"),
        pytest.param({"head_dim": 32, "rope_theta": 500000.0}, id="wide heads"),
    ],
)
def test_logits_are_theirs_in_float32(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_model(tmp_path, **(FLOAT32 | changes))
    ours, reference = load_model(folder), theirs(folder, torch.float32)
    token_ids = PROMPT * 5

    torch.testing.assert_close(
        our_logits(ours, token_ids), their_logits(reference, token_ids), rtol=1e-4, atol=1e-4
    )

    with torch.inference_mode():
        generated = reference.generate(
            torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False, eos_token_id=None
        )
    assert greedy_alone(ours, PROMPT, 30) == generated[0, len(PROMPT) :].tolist()


def test_the_real_models_logits_are_theirs_in_float32(smollm2_dir: Path) -> None:
    token_ids = list(range(1000, 1100))
    settings = EngineSettings(dtype="float32")
    ours = our_logits(load_model(smollm2_dir, settings), token_ids)
    reference = their_logits(theirs(smollm2_dir, torch.float32), token_ids)
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(("dtype", "least_cosine"), [("float32", 0.999999), ("bfloat16", 0.999)])
def test_the_real_models_vectors_are_made_of_their_hidden_states(
    smollm2_dir: Path, dtype: Any, least_cosine: float, pooling: Pooling
) -> None:
    prompts = [list(range(1000, 1000 + length)) for length in (1, 30, 300)]
    model = load_model(smollm2_dir, EngineSettings(dtype=dtype))
    engine = make_engine(model, pooling=pooling)
    reference = theirs(smollm2_dir, torch.float32)

    told = run(engine, [embedding(str(len(prompt)), prompt) for prompt in prompts])

    for prompt in prompts:
        ours = torch.tensor(vector_of(told[str(len(prompt))]))
        assert float(ours @ their_vector(reference, prompt, pooling)) > least_cosine


def test_the_real_models_bfloat16_logits_err_no_more_than_theirs(smollm2_dir: Path) -> None:
    """Against the float32 logits: a root mean square error as of bfloat16 rounding."""
    token_ids = list(range(1000, 1100))
    exact = their_logits(theirs(smollm2_dir, torch.float32), token_ids)
    rounded = their_logits(theirs(smollm2_dir, torch.bfloat16), token_ids)
    ours = our_logits(load_model(smollm2_dir), token_ids)

    def error(logits: torch.Tensor) -> float:
        return float((logits - exact).square().mean().sqrt())

    assert error(ours) < 1.2 * error(rounded)
