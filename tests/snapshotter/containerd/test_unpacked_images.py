"""A real containerd unpacks images into our snapshotter and runs containers on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.containerd.layers import FolderLayers
from tests.snapshotter.containerd.conftest import serving
from tests.support.containerd import SNAPSHOTTER, RunningContainerd
from tests.support.mounts import unmount_below
from tests.support.oci import LayerWriter, base_layer, push_image
from tests.support.registry import RunningRegistry

pytestmark = pytest.mark.real


@pytest.fixture
def image(registry: RunningRegistry) -> str:
    """Three layers: files, some of them gone or hidden again."""
    first, second = LayerWriter(), LayerWriter()
    first.folder("words")
    first.file("words/kept", b"kept")
    first.file("words/gone", b"gone")
    first.folder("hidden")
    first.file("hidden/below", b"below")
    second.file("words/.wh.gone", b"")
    second.folder("hidden")
    second.file("hidden/.wh..wh..opq", b"")
    second.file("hidden/above", b"above")
    layers = [base_layer("ls"), first.layer(), second.layer()]
    return push_image(registry.address, "unpacked", layers).reference


@pytest.fixture
def folder(containerd: RunningContainerd) -> Iterator[Path]:
    """Where the snapshotter's socket is expected."""
    yield containerd.folder
    unmount_below(containerd.folder / "state")


def test_an_image_is_unpacked_run_kept_over_restarts_and_removed(
    containerd: RunningContainerd, folder: Path, image: str
) -> None:
    pull = ("images", "pull", "--plain-http", "--snapshotter", SNAPSHOTTER)
    with serving(folder, FolderLayers()) as asked:
        containerd.find_snapshotter()
        containerd.ctr(*pull, image)
        seen = containerd.run(image, "/bin/cat", "/words/kept", "/hidden/above")
        assert seen == (0, "keptabove")
        seen = containerd.run(image, "/bin/ls", "/words", "/hidden")
        assert seen == (0, "/hidden:\nabove\n\n/words:\nkept\n")
        assert len(asked.names("kind==committed")) == 3

    containerd.kill()
    containerd.start()
    with serving(folder, FolderLayers()) as asked:
        script = "echo new > /words/kept; cat /words/kept"
        containerd.find_snapshotter()
        assert containerd.run(image, "/bin/sh", "-c", script) == (0, "new\n")
        assert containerd.run(image, "/bin/cat", "/words/kept") == (0, "kept")
        containerd.ctr("images", "rm", "--sync", image)
        assert asked.names() == []
        assert asked.folders() == []
