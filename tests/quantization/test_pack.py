"""A model built from what an earlier process packed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from infra.contracts.model_spec import EngineSettings
from tests.engine.tiny import write_model
from worker.kernels.port import Product, Prologue, Span
from worker.kernels.torch_kernels import TorchKernels
from worker.models import registry
from worker.models.config import read_config
from worker.models.pack import Pack
from worker.weights.loader import open_weights
from worker.weights.packed_store import PackedStore
from worker.weights.quantized import QuantizedWeight

NOW = 1_600_000_000.0


class PackedProduct:
    """Its packed form is the parts as one float matrix."""

    def __init__(self, product: Product, weight: torch.Tensor) -> None:
        self._product = product
        self._weight = weight

    def __call__(
        self,
        x: torch.Tensor,
        *,
        prologue: Prologue = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self._product(x, prologue=prologue, residual=residual)

    def state(self) -> Mapping[str, torch.Tensor]:
        return {"packed": self._weight}


class PackingKernels(TorchKernels):
    """Torch's kernels, as if they had a layout of their own; counts what is packed."""

    layout = "stacked 1"
    packed = 0

    def product(
        self,
        parts: Sequence[torch.Tensor | QuantizedWeight],
        biases: Sequence[torch.Tensor | None],
    ) -> Product:
        PackingKernels.packed += 1
        return self.restore({"packed": torch.cat([self._plain(part) for part in parts])})

    def restore(self, state: Mapping[str, torch.Tensor]) -> Product:
        return PackedProduct(super().product([state["packed"]], [None]), state["packed"])


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*, gpus: int, dtype: torch.dtype) -> PackingKernels:
        return PackingKernels(torch.device("cpu"), dtype)

    monkeypatch.setattr(registry, "choose_kernels", choose)
    monkeypatch.setattr(PackingKernels, "packed", 0)


def logits(folder: Path, pack: Pack, settings: EngineSettings) -> torch.Tensor:
    weights = open_weights(folder, lambda fraction: None)
    model = registry.build_model(read_config(folder), weights, settings, pack=pack)
    cache = model.allocate_cache(num_blocks=1, block_size=16)
    return model.logits([5, 6, 7], [Span(0, 3, [0])], [2], cache)


@pytest.mark.usefixtures("packing")
def test_the_second_process_packs_nothing_and_computes_the_same(tmp_path: Path) -> None:
    folder, store = write_model(tmp_path / "model"), PackedStore(tmp_path / "packed")
    first_pack, settings = Pack(store, "sha256:a"), EngineSettings(quantization="int8")
    first = logits(folder, first_pack, settings)
    packed_first = PackingKernels.packed
    first_pack.save(now=NOW)

    second_pack = Pack(store, "sha256:a")
    second = logits(folder, second_pack, settings)

    assert packed_first == 2 * 4 + 1
    assert PackingKernels.packed == packed_first
    assert torch.equal(first, second)
    before = (tmp_path / "packed").stat().st_mtime_ns
    second_pack.save(now=NOW)
    assert (tmp_path / "packed").stat().st_mtime_ns == before


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("change", ["source", "quantization", "dtype"])
def test_another_source_or_format_is_packed_for_itself(tmp_path: Path, change: str) -> None:
    folder, store = write_model(tmp_path / "model"), PackedStore(tmp_path / "packed")
    pack = Pack(store, "sha256:a")
    logits(folder, pack, EngineSettings())
    pack.save(now=NOW)
    packed_first = PackingKernels.packed

    other = Pack(store, "sha256:b" if change == "source" else "sha256:a")
    logits(
        folder,
        other,
        EngineSettings(
            quantization="int8" if change == "quantization" else "none",
            dtype="float32" if change == "dtype" else "auto",
        ),
    )

    assert PackingKernels.packed == 2 * packed_first


@pytest.mark.usefixtures("packing")
def test_a_disk_that_refuses_costs_nothing_but_the_pack(tmp_path: Path) -> None:
    (tmp_path / "packed").touch()  # no folder
    pack = Pack(PackedStore(tmp_path / "packed"), "sha256:a")

    logits(write_model(tmp_path / "model"), pack, EngineSettings())

    pack.save(now=NOW)
