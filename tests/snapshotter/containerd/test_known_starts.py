"""What one node's start touched is on the next node before anybody asks for it."""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from infra.registry.authorization import Authorization, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.reference import Reference
from snapshotter.index.publish import Publisher
from snapshotter.registry.image import this_architecture
from tests.support.containerd import running_containerd
from tests.support.oci import LayerWriter, base_layer, push_image
from tests.support.processes import until
from tests.support.registry import RunningRegistry
from tests.support.snapshotter import RunningSnapshotter, running_snapshotter

pytestmark = pytest.mark.real

NUM_FILES = 4
CONTENTS = [random.Random(seed).randbytes(3 << 20).hex() for seed in range(NUM_FILES)]


@contextmanager
def node(environment: dict[str, str]) -> Iterator[RunningSnapshotter]:
    shares = {"PLATFORM_SNAPSHOTTER_SHARE_TRACES": "true"}
    with (
        running_containerd() as containerd,
        running_snapshotter(containerd, environment | shares) as snapshotter,
    ):
        yield snapshotter


def kept_bytes(node: RunningSnapshotter) -> int:
    names = node.control.ask("list")
    return sum(int(node.control.ask("kept_bytes", name=name)) for name in names)


def test_a_start_is_known_on_a_node_that_never_made_it(
    environment: dict[str, str], registry: RunningRegistry
) -> None:
    writer = LayerWriter()
    writer.folder("data")
    for number, content in enumerate(CONTENTS):
        writer.file(f"data/{number}", content.encode())
    image = push_image(registry.address, "known", [base_layer(), writer.layer()])
    connections = Connections(is_plain=lambda host: True)
    with closing(Registry(connections, Authorization(connections, no_login))) as client:
        publisher = Publisher(client, architecture=this_architecture(), least_layer_bytes=1)
        publisher.index(Reference.parse(image.reference))
    pinned = str(Reference.parse(image.reference).at(image.digest))

    with node(environment) as first:
        assert first.run("pull", image.reference).returncode == 0
        code, said = first.containerd.run(image.reference, "/bin/cat", "/data/2")
        assert (code, said) == (0, CONTENTS[2])
        touched = kept_bytes(first)
        first.control.ask("ready", image=pinned)
        until(lambda: kept_bytes(first) > touched, seconds=60, what="the rest is fetched")

    with node(environment) as second:
        assert second.run("pull", image.reference).returncode == 0
        until(lambda: kept_bytes(second) >= touched, seconds=60, what="the start is fetched")
        registry.stop()
        try:
            code, said = second.containerd.run(image.reference, "/bin/cat", "/data/2")
        finally:
            registry.start()
    assert (code, said) == (0, CONTENTS[2])
