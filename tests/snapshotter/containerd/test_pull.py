"""Images come into a real containerd: layers that can be mounted are not downloaded."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.clock import SystemClock
from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Content, CriImages
from infra.containerd.protos import content_pb2, cri_pb2
from infra.errors import ImageInvalid, NotFound
from infra.registry.authorization import Authorization, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.reference import Reference
from snapshotter.containerd.image_list import list_images, remove_image
from snapshotter.containerd.layer_puller import How
from snapshotter.containerd.layers import FolderLayers
from snapshotter.containerd.puller import PulledImage, Puller
from snapshotter.registry.image import this_architecture
from tests.snapshotter.containerd.conftest import Asked, serving
from tests.support.containerd import SNAPSHOTTER, RunningContainerd
from tests.support.oci import Layer, LayerWriter, PushedImage, base_layer, push_image
from tests.support.processes import until
from tests.support.registry import RunningRegistry

pytestmark = pytest.mark.real


@dataclass
class Node:
    """A containerd with our snapshotter, which can mount what is in `layers`."""

    containerd: RunningContainerd
    client: Containerd
    asked: Asked
    layers: FolderLayers

    def pull(self, reference: str) -> PulledImage:
        connections = Connections(is_plain=lambda host: True)
        registry = Registry(connections, Authorization(connections, no_login))
        puller = Puller(
            self.client,
            registry,
            snapshotter=SNAPSHOTTER,
            architecture=this_architecture(),
            clock=SystemClock.start(),
        )
        try:
            return puller.pull(Reference.parse(reference), lambda done, of, digest: None)
        finally:
            registry.close()

    def has_blob(self, digest: str) -> bool:
        try:
            self.client.call(Content.INFO, content_pb2.InfoRequest(digest=digest))
        except CallFailed:
            return False
        return True


@pytest.fixture
def node(containerd: RunningContainerd, tmp_path: Path) -> Iterator[Node]:
    layers = FolderLayers()
    with (
        serving(containerd.folder, layers) as asked,
        Containerd(containerd.socket, namespace=containerd.namespace) as client,
    ):
        containerd.find_snapshotter()
        yield Node(containerd, client, asked, layers)


def words() -> Layer:
    writer = LayerWriter()
    writer.folder("words")
    writer.file("words/first", b"light")
    return writer.layer()


def make_mountable(node: Node, image: PushedImage, layer: Layer, index: int, folder: Path) -> str:
    with tarfile.open(fileobj=io.BytesIO(layer.tar)) as tar:
        tar.extractall(folder, filter="fully_trusted")
    node.layers.known[image.layers[index]] = folder
    return image.layers[index]


def test_what_can_be_mounted_is_and_the_rest_is_unpacked(
    node: Node, registry: RunningRegistry, tmp_path: Path
) -> None:
    base = base_layer()
    image = push_image(registry.address, "pulled", [base, words()])
    mounted = make_mountable(node, image, base, 0, tmp_path)

    pulled = node.pull(image.reference)

    assert [layer.how for layer in pulled.layers] == [How.MOUNTED, How.UNPACKED]
    assert pulled.digest == image.digest
    seen = node.containerd.run(image.reference, "/bin/cat", "/words/first")
    assert seen == (0, "light")
    assert not node.has_blob(mounted)
    assert node.has_blob(image.layers[1])
    again = node.pull(image.reference)
    assert {layer.how for layer in again.layers} == {How.PRESENT}
    assert [it.name for it in list_images(node.client)] == [image.reference]

    remove_image(node.client, image.reference)
    assert node.asked.names() == []
    assert node.asked.folders() == []
    assert not node.layers.mounted
    with pytest.raises(NotFound):
        remove_image(node.client, image.reference)


def test_kubernetes_pulls_an_image_without_the_layers_that_can_be_mounted(
    node: Node, registry: RunningRegistry, tmp_path: Path
) -> None:
    base = base_layer()
    image = push_image(registry.address, "kubernetes", [base, words()])
    mounted = make_mountable(node, image, base, 0, tmp_path)

    with Containerd(node.containerd.socket, namespace="k8s.io") as kubernetes:
        spec = cri_pb2.ImageSpec(image=image.reference)
        answer = kubernetes.call(CriImages.PULL, cri_pb2.PullImageRequest(image=spec))

        assert answer.image_ref.startswith("sha256:")
        assert set(node.layers.mounted) == {mounted}
        assert [it.name for it in list_images(kubernetes)] == sorted(
            [
                image.reference,
                answer.image_ref,
                f"{image.reference.split(':latest')[0]}@{image.digest}",
            ]
        )
        kubernetes.call(CriImages.REMOVE, cri_pb2.RemoveImageRequest(image=spec))
        until(lambda: not node.layers.mounted, seconds=60, what="containerd has collected it")


def test_a_layer_that_is_not_what_the_image_says_leaves_nothing(
    node: Node, registry: RunningRegistry
) -> None:
    lie = Layer(words().blob, b"something else")
    image = push_image(registry.address, "lie", [base_layer(), lie])

    with pytest.raises(ImageInvalid, match="unpacks to"):
        node.pull(image.reference)

    assert node.asked.names() == []
    assert list_images(node.client) == []
    assert not node.has_blob(image.digest)
