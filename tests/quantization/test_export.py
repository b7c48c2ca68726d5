"""Models written with weights of 8 bits."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.contracts.model_spec import EngineSettings
from infra.errors import Conflict, UnsupportedModel
from tests.engine.tiny import load_model, write_model
from worker.kernels.port import Span
from worker.quantization.export import export_int8
from worker.quantization.export_program import run_export


def nothing(fraction: float, step: str) -> None:
    pass


def logits(folder: Path, **settings: Any) -> torch.Tensor:
    model = load_model(folder, EngineSettings(**settings))
    cache = model.allocate_cache(num_blocks=1, block_size=16)
    return model.logits([5, 6, 7], [Span(0, 3, [0])], [0, 2], cache)


def test_the_export_computes_what_rounding_at_load_does(tmp_path: Path) -> None:
    untied = {"tie_word_embeddings": False, "torch_dtype": "float32"}
    source = write_model(tmp_path / "source", **untied)

    export_int8(source, tmp_path / "int8", nothing)

    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert stored["model.layers.0.mlp.up_proj.weight_scale"].shape == (96, 1)
    assert stored["lm_head.weight"].dtype == torch.float32
    whole = load_file(source / "model.safetensors")
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            whole[name] = tensor.float() * stored[f"{name}_scale"]
    write_model(tmp_path / "plain", **untied)
    save_file(whole, tmp_path / "plain" / "model.safetensors")
    assert torch.equal(logits(tmp_path / "int8"), logits(tmp_path / "plain"))


def test_what_is_beside_the_weights_comes_along(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("hello")
    (source / "pytorch_model.bin").write_bytes(b"\x80")

    export_int8(source, tmp_path / "int8", nothing)

    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "exported-from.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_shards_stay_shards(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    places = {name: f"{'ab'['mlp' in name]}.safetensors" for name in tensors}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, source / file)
    index = {"metadata": {}, "weight_map": places}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = logits(source, quantization="none")
    (source / "model.safetensors").unlink()

    export_int8(source, tmp_path / "int8", nothing)

    rounded = logits(tmp_path / "int8")
    assert 0 < float((rounded - whole).norm() / whole.norm()) < 0.1


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    export_int8(source, tmp_path / "int8", nothing)
    export_int8(source, tmp_path / "int8", nothing)

    with pytest.raises(Conflict):
        export_int8(source, source, nothing)


def test_a_quantised_model_is_not_rounded_again(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    export_int8(source, tmp_path / "int8", nothing)

    with pytest.raises(UnsupportedModel, match="already"):
        export_int8(tmp_path / "int8", tmp_path / "again", nothing)
    assert not (tmp_path / "again").exists()


def test_the_program_says_why_it_failed(tmp_path: Path) -> None:
    out = io.StringIO()

    assert run_export(tmp_path / "none", tmp_path / "target", out) == 1
    assert "config.json" in json.loads(out.getvalue())["error"]
