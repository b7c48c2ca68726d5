"""What is not documented fails here: settings, error types, keys of model.yaml."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from control_plane.settings import Settings
from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import ChatCompletionRequest, CompletionRequest, InvokeRequest
from infra.contracts.model_spec import ModelSpec
from infra.errors import PlatformError
from snapshotter.settings import SnapshotterSettings
from worker.settings import NodeSettings

DOCS = Path(__file__).parents[2] / "docs"


def kinds(base: type[PlatformError]) -> Iterator[type[PlatformError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def keys(contract: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in contract.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize(
    "kind", sorted(set(kinds(PlatformError)), key=str), ids=lambda kind: kind.slug
)
def test_every_error_type_is_documented_with_its_status(kind: type[PlatformError]) -> None:
    assert f"| `{kind.slug}` | {kind.status.value} |" in (DOCS / "errors.md").read_text()


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    assert f"| `PLATFORM_{name.upper()}` |" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("name", list(NodeSettings.model_fields))
def test_every_setting_of_a_node_agent_is_documented(name: str) -> None:
    assert f"| `PLATFORM_NODE_{name.upper()}` |" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("name", list(SnapshotterSettings.model_fields))
def test_every_setting_of_the_snapshotter_is_documented(name: str) -> None:
    assert f"| `PLATFORM_SNAPSHOTTER_{name.upper()}` |" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("key", list(keys(ModelSpec)))
def test_every_key_of_model_yaml_is_documented(key: str) -> None:
    assert f"| `{key}` |" in (DOCS / "model-yaml.md").read_text()


@pytest.mark.parametrize(
    "contract", [ChatCompletionRequest, CompletionRequest, EmbeddingsRequest, InvokeRequest]
)
def test_every_parameter_of_a_request_is_documented(contract: type[BaseModel]) -> None:
    text = (DOCS / "generation.md").read_text()
    for name, field in contract.model_fields.items():
        assert f"| `{name}` |" in text
        assert f"| {field.description} |" in text
