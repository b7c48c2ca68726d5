"""Weights of a registry by way of a snapshotter that runs in processes of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.sources.node_chunks import share_through
from infra.sources.sources import Sources
from tests.sources.models import WEIGHTS, model_files
from tests.support.containerd import running_containerd
from tests.support.processes import until
from tests.support.pushed_model import push_model
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
    return push_model(model_files(), registry.address, "tiny")


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
