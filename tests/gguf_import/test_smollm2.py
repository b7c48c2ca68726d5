"""The importer against the real SmolLM2: tokens, tensors and logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gguf_import.corpus import CASES
from tests.gguf_import.reference import Gguf, ReferenceTokenizer, reference_logits
from worker.weights.gguf_import import import_gguf

pytestmark = pytest.mark.real
PROMPT = "The capital of France is Paris. Deux plus deux font"


@pytest.fixture(scope="module")
def gguf(smollm2_gguf: Path) -> Gguf:
    return Gguf(smollm2_gguf)


@pytest.fixture(scope="module")
def folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder our importer makes of the GGUF."""
    target = tmp_path_factory.mktemp("import") / "smollm2"
    import_gguf(smollm2_gguf, target, lambda fraction, step: None)
    return target


def corpus() -> list[str]:
    """The hard cases, and all the code and prose of this project."""
    root = Path(__file__).parents[2]
    files = [
        path
        for part in ("control_plane", "infra", "worker", "tests", "scripts")
        for path in sorted((root / part).rglob("*"))
        if path.suffix in {".py", ".md", ".lua", ".yaml", ""}
        and path.is_file()
        and "_built" not in path.parts
    ]
    return [*CASES, "\n".join(CASES), *(path.read_text() for path in files)]


def test_tokenisation_equals_the_ggufs_own(gguf: Gguf, folder: Path) -> None:
    imported = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference = ReferenceTokenizer(gguf)
    texts = corpus()

    encodings = imported.encode_batch(texts, add_special_tokens=True)

    assert sum(len(encoding.ids) for encoding in encodings) > 50_000
    for text, encoding in zip(texts, encodings, strict=True):
        assert encoding.ids == reference.encode(text)
        assert imported.decode(encoding.ids, skip_special_tokens=False) == text


def test_logits_equal_a_plain_forward_pass_over_the_gguf(gguf: Gguf, folder: Path) -> None:
    ids = ReferenceTokenizer(gguf).encode(PROMPT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()

    rounded = reference_logits(gguf, ids, rounded=True)
    exact = reference_logits(gguf, ids, rounded=False)
    assert np.abs(logits - rounded).max() < 2e-3  # float32 summed in another order
    # bfloat16 keeps 8 bits: each weight is off by up to 1 part in 256, at random, in 30 layers
    assert np.linalg.norm(logits - exact) / np.linalg.norm(exact) < 2 / 256
    assert np.array_equal(logits.argmax(-1), exact.argmax(-1))


def test_the_chat_template_is_the_models_own(gguf: Gguf, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )

    assert tokenizer.chat_template == gguf["tokenizer.chat_template"]
    assert text == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode("x  1\n") == ReferenceTokenizer(gguf).encode("x  1\n")
