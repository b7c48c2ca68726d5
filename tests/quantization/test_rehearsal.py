"""What rounding to 4 bits is told of a model's inner channels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from safetensors.torch import load_file, save_file

from infra.contracts.model_spec import EngineSettings
from tests.engine.tiny import load_model, write_model
from tests.quantization.test_pack import logits, opened
from tests.support.native import native
from worker.models.rehearsal import REHEARSED_TOKENS, rehearsed
from worker.parallel.share import Cut
from worker.quantization.reader import WeightReader
from worker.weights.packed_store import PackedStore

INT4 = EngineSettings(quantization="int4")
GATE_UP = ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor | None]:
    """What the reader of weights is told of each product's inputs, by the first layer's name."""
    heard: dict[str, torch.Tensor | None] = {}
    linears = WeightReader.linears

    def listening(
        self: WeightReader,
        layers: Sequence[tuple[str, Sequence[Cut]]],
        inputs: Cut,
        dtype: torch.dtype,
        importance: torch.Tensor | None = None,
    ) -> Any:
        heard[layers[0][0]] = importance
        return linears(self, layers, inputs, dtype, importance)

    monkeypatch.setattr(WeightReader, "linears", listening)
    return heard


def changed(folder: Path, name: str, factor: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] *= factor
    save_file(tensors, path)


def test_gate_and_up_are_told_the_mean_squares_of_what_they_multiply(
    tmp_path: Path, told: dict[str, torch.Tensor | None]
) -> None:
    folder = write_model(tmp_path, torch_dtype="float32")
    changed(folder, "model.layers.0.self_attn.o_proj.weight", 0)  # attention that adds nothing
    tensors = load_file(folder / "model.safetensors")
    embedded = tensors["model.embed_tokens.weight"][rehearsed(160, REHEARSED_TOKENS)]
    norm = tensors["model.layers.0.post_attention_layernorm.weight"]

    load_model(folder, INT4)

    assert [name for name, importance in told.items() if importance is not None] == GATE_UP
    expected = F.rms_norm(embedded, norm.shape, norm, 1e-5)[4:].square().mean(0)
    torch.testing.assert_close(told[GATE_UP[0]], expected)


def test_a_model_that_makes_no_numbers_is_rounded_without(
    tmp_path: Path, told: dict[str, torch.Tensor | None]
) -> None:
    folder = write_model(tmp_path)
    changed(folder, "model.layers.0.mlp.down_proj.weight", 1e38)

    load_model(folder, INT4)

    assert told[GATE_UP[0]] is not None
    assert told[GATE_UP[1]] is None


def test_channels_whose_squares_are_numbers_but_not_their_sum_are_rounded_without(
    tmp_path: Path, told: dict[str, torch.Tensor | None]
) -> None:
    folder = write_model(tmp_path, hidden_size=512)
    changed(folder, "model.layers.0.post_attention_layernorm.weight", 1e18)

    load_model(folder, EngineSettings(quantization="int4", max_context_tokens=16))

    assert told[GATE_UP[0]] is None


@native
def test_what_is_packed_depends_on_no_format_of_keys_and_values(
    tmp_path: Path, told: dict[str, torch.Tensor | None]
) -> None:
    folder = write_model(tmp_path)
    load_model(folder, INT4)
    plain = dict(told)

    load_model(folder, EngineSettings(quantization="int4", kv_cache_dtype="int8"))

    for name in GATE_UP:
        first, second = plain[name], told[name]
        assert first is not None and second is not None
        assert torch.equal(first, second)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_other_formats_need_to_know_nothing(
    tmp_path: Path, told: dict[str, torch.Tensor | None], quantization: str
) -> None:
    load_model(write_model(tmp_path), EngineSettings.model_validate({"quantization": quantization}))

    assert set(told.values()) == {None}


@pytest.mark.parametrize("context_tokens", [16, 100])
def test_a_context_may_be_shorter_than_the_rehearsal(tmp_path: Path, context_tokens: int) -> None:
    settings = EngineSettings(quantization="int4", max_context_tokens=context_tokens)

    assert load_model(write_model(tmp_path), settings).context_tokens == context_tokens


@native
def test_packed_weights_are_taken_without_a_rehearsal(
    tmp_path: Path, told: dict[str, torch.Tensor | None]
) -> None:
    folder, store = write_model(tmp_path / "model"), PackedStore(tmp_path / "packed")
    first = opened(folder, store, INT4)
    logits(folder, first, INT4)
    first.save(now=1_600_000_000.0)
    told.clear()

    logits(folder, opened(folder, store, INT4), INT4)

    assert told == {}


@native
def test_a_model_is_rounded_alike_whenever_it_is_built(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    packs = [opened(folder, PackedStore(tmp_path / name), INT4) for name in ("a", "b")]

    first, second = (logits(folder, pack, INT4) for pack in packs)

    assert torch.equal(first, second)
