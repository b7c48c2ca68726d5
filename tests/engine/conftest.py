from pathlib import Path

import pytest
import torch

from tests.engine.tiny import load_model, write_model
from worker.models.causal_model import CausalModel


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in bfloat16."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session", params=["bfloat16", "float32"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    """A random model in both formats."""
    torch.set_num_threads(1)  # OpenMP would spin against other tests on a small machine
    return load_model(
        write_model(tmp_path_factory.mktemp("models") / "tiny", torch_dtype=request.param)
    )
