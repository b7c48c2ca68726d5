"""Weights of a registry by way of a snapshotter that runs in processes of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.registry.authorization import Authorization, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.manifest import MANIFEST
from infra.registry.reference import Reference
from infra.sources.node_chunks import share_through
from infra.sources.sources import Sources
from tests.sources.models import WEIGHTS, model_files
from tests.support.containerd import running_containerd
from tests.support.processes import until
from tests.support.registry import RunningRegistry
from tests.support.snapshotter import RunningSnapshotter, running_snapshotter

pytestmark = pytest.mark.real


@pytest.fixture
def node(environment: dict[str, str]) -> Iterator[RunningSnapshotter]:
    with (
        running_containerd() as containerd,
        running_snapshotter(containerd, environment) as snapshotter,
    ):
        yield snapshotter


@pytest.fixture
def uri(registry: RunningRegistry) -> str:
    """A model as `oras push` leaves it."""
    connections = Connections(is_plain=lambda host: True)
    client = Registry(connections, Authorization(connections, no_login))
    reference = Reference(registry.address, "models/tiny", "v1")
    layers = []
    for name, content in model_files().items():
        blob = client.push_blob(reference, content, "application/octet-stream").as_json()
        layers.append(blob | {"annotations": {"org.opencontainers.image.title": name}})
    config = client.push_blob(reference, b"{}", "application/vnd.oci.empty.v1+json").as_json()
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    client.push_manifest(reference, manifest, name="v1")
    client.close()
    return f"oci://{reference}"


def test_what_the_store_has_outlives_the_process_that_has_it(
    node: RunningSnapshotter, uri: str, tmp_path: Path
) -> None:
    socket = node.state_dir / "weights.sock"
    until(socket.exists, seconds=60, what="the store listens")
    sources = Sources(share=share_through(socket))
    resolved, _ = sources.resolve(uri)

    def start(cache: str) -> tuple[bytes, str]:
        opened = sources.open(resolved, tmp_path / cache, lambda size: None, lambda _: None)
        return (opened.folder / "model.safetensors").read_bytes(), opened.origin

    assert start("first") == (WEIGHTS, "registry")

    killed = node.data_process()
    killed.kill()
    until(lambda: node.data_process().pid != killed.pid, seconds=60, what="there is another one")

    assert start("second") == (WEIGHTS, "cache")
