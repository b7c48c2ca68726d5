"""Every architecture computed by 2 and by 4 processes, beside one that computes it alone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.contracts.model_spec import EngineSettings
from tests.engine.test_families import CASES, CONTEXT, write_family
from tests.engine.tiny import CONFIG, load_model, random_tensors
from tests.parallel.rank import logits_of
from tests.quantization.checkpoints import gptq, random_layer, stored
from worker.models.causal_model import CausalModel

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

TOKEN_IDS = CONTEXT[:120]
EVEN = {"num_attention_heads": 8, "num_key_value_heads": 4}


class Models:
    """Folders and settings by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.models: dict[str, tuple[str, dict[str, Any]]] = {}
        for case in CASES:
            name, changes = case.values
            self.models[str(case.id)] = (
                str(write_family(folder / str(case.id), name, changes)),
                {},
            )
        self.models["int8"] = (self._tiny("int8", **EVEN), {"quantization": "int8"})
        self.models["int4"] = (self._tiny("int4", **EVEN), {"quantization": "int4"})
        self.models["int8 keys"] = (self._tiny("keys", **EVEN), {"kv_cache_dtype": "int8"})
        self.models["published"] = (self._published(), {})

    def _tiny(self, name: str, **changes: Any) -> str:
        folder = self._folder / name
        folder.mkdir()
        config = CONFIG | changes
        (folder / "config.json").write_text(json.dumps(config))
        save_file(random_tensors(config), folder / "model.safetensors")
        return str(folder)

    def _published(self) -> str:
        """A GPTQ checkpoint whose groups of 32 columns can be divided by four."""
        shape = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 128}
        quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32}
        folder = self._tiny("published", **shape, quantization_config=quantization)
        tensors: dict[str, torch.Tensor] = {}
        for seed, (name, tensor) in enumerate(random_tensors(CONFIG | shape).items()):
            if "proj" in name:
                layer = random_layer(*tensor.shape, seed=seed)
                tensors |= gptq(name.removesuffix(".weight"), layer)
            else:
                tensors[name] = tensor
        stored(Path(folder), tensors)
        return folder

    def alone(self, name: str) -> CausalModel:
        folder, settings = self.models[name]
        return load_model(Path(folder), EngineSettings(**settings))

    def run(self, size: int) -> dict[str, torch.Tensor]:
        job = self._folder / f"job-{size}.json"
        results = self._folder / f"results-{size}.safetensors"
        meeting = self._folder / f"meeting-{size}"
        work = {"models": self.models, "token_ids": TOKEN_IDS}
        job.write_text(json.dumps(work | {"results": str(results), "meeting": str(meeting)}))
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.rank", str(rank), str(size), str(job)]
            )
            for rank in range(size)
        ]
        assert [rank.wait(timeout=240) for rank in ranks] == [0] * size
        return load_file(results)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module", params=[2, 4])
def ran(request: pytest.FixtureRequest, models: Models) -> Iterator[dict[str, torch.Tensor]]:
    yield models.run(request.param)


@pytest.mark.parametrize("name", [str(case.id) for case in CASES])
def test_ranks_together_compute_what_one_does(
    ran: dict[str, torch.Tensor], models: Models, name: str
) -> None:
    expected = logits_of(models.alone(name), TOKEN_IDS)

    torch.testing.assert_close(ran[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["int8", "int4", "int8 keys", "published"])
def test_rounded_weights_and_keys_are_as_near_as_they_are_alone(
    ran: dict[str, torch.Tensor], models: Models, name: str
) -> None:
    folder, _ = models.models[name]
    exact = logits_of(load_model(Path(folder), EngineSettings(dtype="float32")), TOKEN_IDS)
    alone = logits_of(models.alone(name), TOKEN_IDS)

    def distance(logits: torch.Tensor) -> float:
        return float((logits - exact).square().mean().sqrt())

    assert distance(ran[name]) < 1.5 * distance(alone) + 0.02 * float(exact.std())
