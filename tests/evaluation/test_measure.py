"""What is measured of a model, on a small random one."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from tests.engine.tiny import load_model, write_model
from worker.evaluation.evaluate import step_bytes
from worker.evaluation.measure import Predictions, predict
from worker.evaluation.program import run_evaluation
from worker.evaluation.texts import read_texts, windows
from worker.kernels.port import Span
from worker.models.config import read_config

PIECES = [list(range(3, 150)), [7, 9], list(range(100, 20, -1))]


def predicted(folder: Path, reference: Predictions | None = None, **settings: Any) -> Predictions:
    model = load_model(folder, EngineSettings(**settings))
    return predict(model, PIECES, reference=reference, on_piece=lambda: None)


def test_the_loss_is_that_of_each_token_given_those_before_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path, torch_dtype="float32")
    model = load_model(folder)
    expected = []
    for piece in PIECES:
        cache = model.allocate_cache(num_blocks=16, block_size=16)
        logits = model.logits(piece, [Span(0, len(piece), range(16))], range(len(piece)), cache)
        logs = logits.log_softmax(-1)
        expected += [-logs[at, token] for at, token in enumerate(piece[1:])]

    found = predicted(folder)

    torch.testing.assert_close(found.loss, torch.stack(expected))
    assert found.perplexity == pytest.approx(float(torch.stack(expected).mean().exp()))


def test_a_model_agrees_with_itself_entirely(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    reference = predicted(folder)

    again = predicted(folder, reference)

    assert again.agreement(reference) == 1
    assert again.divergence(reference) == pytest.approx(0, abs=1e-7)


def test_fewer_bits_agree_less(tmp_path: Path) -> None:
    folder = write_model(tmp_path, torch_dtype="float32")
    reference = predicted(folder)

    int8 = predicted(folder, reference, quantization="int8")
    int4 = predicted(folder, reference, quantization="int4")

    assert 1 > int8.agreement(reference) > int4.agreement(reference)
    assert 0 < int8.divergence(reference) < int4.divergence(reference)


def test_windows_never_cross_documents() -> None:
    documents = [list(range(7)), [10, 11], [20], list(range(30, 40))]

    assert list(windows(documents, window=3, most_tokens=14)) == [
        *([0, 1, 2], [3, 4, 5], [10, 11]),
        *([30, 31, 32],),
    ]


def test_the_text_is_long_enough_and_of_many_kinds() -> None:
    texts = read_texts()

    assert len(texts) == 10
    assert sum(len(text.split()) for text in texts) > 2000


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_a_step_reads_all_linear_layers_and_norms(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path, tie_word_embeddings=False, num_hidden_layers=1)
    gate_up = [(96, 64), (96, 64)]
    others = [(96, 64), (32, 64), (32, 64), (64, 96), (64, 96), (160, 64)]
    each = {
        "bf16": lambda outputs, inputs: outputs * inputs * 2,
        "int8": lambda outputs, inputs: outputs * (inputs + 4),
        "int4": lambda outputs, inputs: outputs * (inputs // 32) * 20,
    }
    expected = sum(each[name](*layer) for layer in gate_up)
    expected += sum(each["bf16" if name == "bf16" else "int8"](*layer) for layer in others)

    found = step_bytes(folder, read_config(folder), name)

    assert found == expected + 3 * 64 * 2


def test_a_folder_that_is_no_model_is_said_with_its_reason(tmp_path: Path) -> None:
    out = io.StringIO()

    code = run_evaluation(tmp_path, out, formats=[], most_tokens=100, window=50)

    assert code == 1
    assert "config.json" in json.loads(out.getvalue().splitlines()[-1])["error"]


def test_a_quantised_checkpoint_is_not_rounded_again(tmp_path: Path) -> None:
    out = io.StringIO()
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    write_model(tmp_path, quantization_config=quantization)

    code = run_evaluation(tmp_path, out, formats=["int4"], most_tokens=100, window=50)

    assert code == 1
    assert json.loads(out.getvalue())["error"] == "the weights are quantised already"
