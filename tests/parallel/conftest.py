"""The model that ranks divide among them."""

from pathlib import Path

import pytest

from tests.engine.tiny import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("led") / "tiny", torch_dtype="float32")
