"""A model built from what an earlier process packed."""

from pathlib import Path

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from tests.engine.tiny import write_model
from tests.support.native import native
from worker.kernels.port import Span
from worker.models.config import read_config
from worker.models.pack import Pack
from worker.models.registry import build_model, open_pack
from worker.weights.loader import open_weights
from worker.weights.packed_store import PackedStore

NOW = 1_600_000_000.0
pytestmark = native


def opened(folder: Path, store: PackedStore, settings: EngineSettings, source: str = "a") -> Pack:
    pack = open_pack(read_config(folder), settings, store, source_digest=f"sha256:{source}")
    assert pack is not None
    return pack


def logits(folder: Path, pack: Pack, settings: EngineSettings) -> torch.Tensor:
    weights = open_weights(folder, lambda fraction: None, reads_ahead=not pack.found_bytes)
    model = build_model(read_config(folder), weights, settings, pack=pack)
    cache = model.allocate_cache(num_blocks=1, block_size=16)
    return model.logits([5, 6, 7], [Span(0, 3, [0])], [2], cache)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_second_process_packs_nothing_and_computes_the_same(
    tmp_path: Path, quantization: str, has_bias: bool
) -> None:
    folder = write_model(tmp_path / "model", attention_bias=has_bias)
    store = PackedStore(tmp_path / "packed")
    settings = EngineSettings.model_validate({"quantization": quantization})
    first_pack = opened(folder, store, settings)
    first = logits(folder, first_pack, settings)
    assert first_pack.found_bytes == 0
    first_pack.save(now=NOW)

    second_pack = opened(folder, store, settings)
    assert second_pack.found_bytes > 0
    assert torch.equal(logits(folder, second_pack, settings), first)
    before = (tmp_path / "packed").stat().st_mtime_ns
    second_pack.save(now=NOW)
    assert (tmp_path / "packed").stat().st_mtime_ns == before


def test_another_source_or_format_is_packed_for_itself(tmp_path: Path) -> None:
    folder, store = write_model(tmp_path / "model"), PackedStore(tmp_path / "packed")
    pack = opened(folder, store, EngineSettings())
    logits(folder, pack, EngineSettings())
    pack.save(now=NOW)

    assert opened(folder, store, EngineSettings()).found_bytes
    assert not opened(folder, store, EngineSettings(), source="b").found_bytes
    assert not opened(folder, store, EngineSettings(quantization="int8")).found_bytes


def test_kernels_that_pack_nothing_keep_nothing(tmp_path: Path) -> None:
    config = read_config(write_model(tmp_path / "model"))
    settings, store = EngineSettings(dtype="float32"), PackedStore(tmp_path / "packed")
    assert open_pack(config, settings, store, source_digest="sha256:a") is None


def test_a_disk_that_refuses_costs_nothing_but_the_pack(tmp_path: Path) -> None:
    (tmp_path / "packed").touch()  # no folder
    folder = write_model(tmp_path / "model")
    pack = opened(folder, PackedStore(tmp_path / "packed"), EngineSettings())

    logits(folder, pack, EngineSettings())

    pack.save(now=NOW)
