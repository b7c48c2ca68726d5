"""The containerd, the registry and the images that the other tests here stand on."""

import pytest

from tests.support.containerd import RunningContainerd
from tests.support.oci import LayerWriter, base_layer, push_image
from tests.support.registry import RunningRegistry

pytestmark = pytest.mark.real


def test_an_image_that_was_pushed_here_is_pulled_and_runs(
    containerd: RunningContainerd, registry: RunningRegistry
) -> None:
    words = LayerWriter()
    words.file("words/first", b"light")
    image = push_image(registry.address, "plain", [base_layer(), words.layer()])

    containerd.ctr("images", "pull", "--plain-http", image.reference)
    seen = containerd.run(image.reference, "/bin/cat", "/words/first", snapshotter="overlayfs")

    assert seen == (0, "light")
    containerd.ctr("images", "rm", "--sync", image.reference)
