"""Containers run from layers that were never downloaded, through everything that dies meanwhile."""

import asyncio
import random
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Content, CriImages
from infra.containerd.protos import content_pb2, cri_pb2
from infra.containerd.snapshot_names import snapshot_name
from infra.errors import ImageUnavailable
from infra.redis import EmbeddedRedis
from infra.registry.authorization import Authorization, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.reference import Reference
from snapshotter.index.build import index_layer
from snapshotter.index.image_index import ARTIFACT_TYPE, LAYER
from snapshotter.index.layer_index import MEDIA_TYPE
from snapshotter.index.publish import Publisher
from snapshotter.registry.image import chain_ids, this_architecture
from snapshotter.registry.referrers import attach
from tests.support.containerd import SNAPSHOTTER, RunningContainerd, running_containerd
from tests.support.mounts import mounts_below
from tests.support.oci import (
    GZIP_LAYER,
    Layer,
    LayerWriter,
    PushedImage,
    base_layer,
    digest_of,
    push_image,
)
from tests.support.processes import alive, until
from tests.support.registry import RunningRegistry
from tests.support.snapshotter import RunningSnapshotter, running_snapshotter
from worker.node.container.pull_service import PullService

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

FILE_BYTES = 6 << 20  # more than a span of gzip
NUM_FILES = 4


@dataclass(frozen=True)
class LazyImage:
    """An image with an index, and what is in its large files."""

    pushed: PushedImage
    contents: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.pushed.reference


@pytest.fixture(scope="module")
def image(registry: RunningRegistry) -> LazyImage:
    writer = LayerWriter()
    writer.folder("data")
    source = random.Random(5)
    contents = []
    for number in range(NUM_FILES):
        contents.append(source.randbytes(FILE_BYTES // 2).hex())
        writer.file(f"data/{number}", contents[-1].encode())
    pushed = push_image(registry.address, "lazy", [base_layer(), writer.layer()])
    with registry_client() as client:
        publish(client, Reference.parse(pushed.reference))
    return LazyImage(pushed, tuple(contents))


@contextmanager
def registry_client() -> Iterator[Registry]:
    connections = Connections(is_plain=lambda host: True)
    client = Registry(connections, Authorization(connections, no_login))
    yield client
    client.close()


def publish(client: Registry, image: Reference) -> str:
    """Its index's digest."""
    publisher = Publisher(client, architecture=this_architecture(), least_layer_bytes=1)
    index = publisher.index(image).index
    assert index is not None
    return index


@pytest.fixture
def node(environment: dict[str, str]) -> Iterator[RunningSnapshotter]:
    """A node of its own, whose reads give up soon."""
    patience = {"PLATFORM_SNAPSHOTTER_READ_DEADLINE_S": "1"}
    with (
        running_containerd() as containerd,
        running_snapshotter(containerd, environment | patience) as snapshotter,
    ):
        yield snapshotter


@contextmanager
def running(node: RunningSnapshotter, image: LazyImage) -> Iterator[None]:
    """A container, `long`, that runs as long as it is looked at."""
    node.containerd.start_container(image.name, "long")
    yield
    node.containerd.end_container("long")


def read(node: RunningSnapshotter, number: int) -> tuple[int, str]:
    """A file as the running container sees it."""
    return node.containerd.execute("long", "/bin/cat", f"/data/{number}")


def read_anew(node: RunningSnapshotter, image: LazyImage, number: int) -> tuple[int, str]:
    """A file as a container sees it that is started now."""
    return node.containerd.run(image.name, "/bin/cat", f"/data/{number}")


def has_blob(containerd: RunningContainerd, digest: str) -> bool:
    with Containerd(containerd.socket, namespace=containerd.namespace) as client:
        try:
            client.call(Content.INFO, content_pb2.InfoRequest(digest=digest))
        except CallFailed:
            return False
    return True


def service_of(node: RunningSnapshotter) -> PullService:
    """What a node agent pulls by."""
    return PullService(
        node.state_dir / "pull.sock",
        containerd=node.containerd.socket,
        namespace=node.containerd.namespace,
        snapshotter=SNAPSHOTTER,
    )


def layer_mounts(node: RunningSnapshotter) -> list[str]:
    return mounts_below(node.state_dir / "fs/layers")


def test_the_snapshotter_pulls_for_a_node_agent_that_asks(
    node: RunningSnapshotter, image: LazyImage
) -> None:
    service = service_of(node)
    heard: list[float] = []

    first = asyncio.run(service.pull(image.name, heard.append))
    assert read_anew(node, image, 0) == (0, image.contents[0])
    second = asyncio.run(service.pull(image.name, heard.append))

    assert (first.digest, first.bytes, first.source) == (image.pushed.digest, 0, "origin")
    assert (second.digest, second.bytes, second.source) == (image.pushed.digest, 0, "cache")
    assert heard == [0, 0.5, 0, 0.5]
    with pytest.raises(ImageUnavailable, match="is not in the registry"):
        asyncio.run(service.pull(f"{image.name}-other", heard.append))


def data_layer(word: str, *more: str) -> Layer:
    writer = LayerWriter()
    writer.folder("data")
    for name in ("word", *more):
        writer.file(f"data/{name}", word.encode())
    return writer.layer()


def test_an_index_that_was_pushed_after_the_pinned_one_is_not_mounted(
    node: RunningSnapshotter, registry: RunningRegistry, tmp_path: Path
) -> None:
    layers = [base_layer(), data_layer("right", "size")]
    pushed = push_image(registry.address, "pinned", layers)
    chain = chain_ids([digest_of(layer.tar) for layer in layers])[-1]
    reference = Reference.parse(f"{pushed.reference}@{pushed.digest}")
    with registry_client() as client:
        pin = publish(client, reference)
        lie = tmp_path / "wrong"
        lie.write_bytes(data_layer("wrong").blob)
        packed = index_layer(lie, layer=pushed.layers[1], media_type=GZIP_LAYER).packed()
        blob = client.push_blob(reference, packed, MEDIA_TYPE)
        described = replace(blob, annotations={LAYER: pushed.layers[1]})
        subject = client.manifest(reference).descriptor
        attach(client, reference, subject, artifact_type=ARTIFACT_TYPE, blobs=[described])

    def said(index: str | None) -> tuple[int, str]:
        """Of a program on the image that was pulled so."""
        asyncio.run(service_of(node).pull(str(reference), lambda done: None, index=index))
        return run_on(node, snapshot_name(chain, index), "/bin/cat", "/data/word")

    nowhere = f"sha256:{'0' * 64}"
    assert said(None) != (0, "right"), "without a pin what was pushed is believed"
    assert len(layer_mounts(node)) == 1
    assert said(pin) == (0, "right"), "one layer is mounted, one unpacked: the lie is mounted"
    assert said(nowhere) == (0, "right"), "all are unpacked"
    assert len(layer_mounts(node)) == 2
    assert {line["pin"] for line in node.logged("index.refused")} == {pin, nowhere}
    assert len(node.logged("snapshot.unpacked")) == 4


def run_on(node: RunningSnapshotter, snapshot: str, *command: str) -> tuple[int, str]:
    """A program on a snapshot that `ctr run` does not find: its exit code, and what it said."""
    ctr = ("snapshots", "--snapshotter", SNAPSHOTTER)
    root = node.containerd.folder / "root"
    root.mkdir(exist_ok=True)
    node.containerd.ctr(*ctr, "prepare", "look", snapshot)
    mount = node.containerd.ctr(*ctr, "mounts", str(root), "look")
    subprocess.run(shlex.split(mount), check=True)
    try:
        done = subprocess.run(
            ("chroot", str(root), *command), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout
    finally:
        subprocess.run(("umount", str(root)), check=True)
        node.containerd.ctr(*ctr, "rm", "look")


def test_a_container_survives_the_end_of_everything_that_serves_its_files(
    node: RunningSnapshotter, image: LazyImage
) -> None:
    pulled = node.run("pull", image.name)
    assert "2 mounted" in pulled.stderr, pulled.stderr + node.log.read_text()
    assert not any(has_blob(node.containerd, digest) for digest in image.pushed.layers)
    with running(node, image):
        assert read(node, 0) == (0, image.contents[0])

        node.data_process().kill()
        assert read(node, 1) == (0, image.contents[1])

        node.kill()
        assert read(node, 2) == (0, image.contents[2])
        node.containerd.kill()
        node.containerd.start()
        node.start()
        assert read(node, 3) == (0, image.contents[3])
        assert len(layer_mounts(node)) == 2

    assert read_anew(node, image, 1) == (0, image.contents[1])
    assert node.run("rm", image.name).returncode == 0
    assert layer_mounts(node) == []
    keeper = node.keeper()
    assert node.stop() == 0
    until(lambda: not alive([keeper]), seconds=60, what="the keeper has ended")


def test_a_registry_that_is_away_fails_only_reads_of_what_is_not_here_and_only_as_long(
    node: RunningSnapshotter, image: LazyImage, registry: RunningRegistry
) -> None:
    node.run("pull", image.name)
    with running(node, image):
        assert read(node, 0) == (0, image.contents[0])
        registry.stop()
        try:
            node.kill()
            node.keeper().kill()
            node.start()  # starts all the same, and mounts again what the keeper lost
            assert read_anew(node, image, 0) == (0, image.contents[0])
            code, said = read_anew(node, image, 3)
            assert code != 0
            assert said == "/bin/cat: /data/3: Input/output error\n"
        finally:
            registry.start()
        assert read_anew(node, image, 3) == (0, image.contents[3])


def test_kubernetes_pulls_lazily_and_a_plugin_that_ends_leaves_its_mounts(
    node: RunningSnapshotter, image: LazyImage
) -> None:
    with Containerd(node.containerd.socket, namespace="k8s.io") as kubernetes:
        spec = cri_pb2.ImageSpec(image=image.name)
        kubernetes.call(CriImages.PULL, cri_pb2.PullImageRequest(image=spec))
        mounted = layer_mounts(node)
        assert len(mounted) == 2
        assert not any(has_blob(node.containerd, digest) for digest in image.pushed.layers)

        keeper = node.keeper()
        assert node.stop() == 0
        assert alive([keeper])
        assert layer_mounts(node) == mounted
        node.start()
        assert node.keeper() == keeper
        kubernetes.call(CriImages.REMOVE, cri_pb2.RemoveImageRequest(image=spec))
        until(lambda: not layer_mounts(node), seconds=60, what="containerd has collected it")


def test_what_a_start_read_is_fetched_first_the_next_time(
    node: RunningSnapshotter, image: LazyImage
) -> None:
    node.run("pull", image.name)
    assert read_anew(node, image, 2) == (0, image.contents[2])
    assert node.logged("start.replayed") == []

    node.control.ask("ready", image=f"{image.name}@{image.pushed.digest}")
    assert read_anew(node, image, 2) == (0, image.contents[2])

    (recorded,) = node.logged("start.recorded")
    (replayed,) = node.logged("start.replayed")
    assert recorded["touches"] == replayed["touches"]


async def test_a_node_reads_from_another_one_what_no_registry_gives(
    environment: dict[str, str], image: LazyImage, registry: RunningRegistry, tmp_path: Path
) -> None:
    async with EmbeddedRedis(tmp_path) as redis:
        with ExitStack() as stack:
            first, second = (
                stack.enter_context(sharing_node(environment, redis.url, name)) for name in "ab"
            )
            for node in (first, second):
                node.run("pull", image.name)
            assert read_anew(first, image, 0) == (0, image.contents[0])
            registry.stop()
            try:
                assert read_anew(second, image, 0) == (0, image.contents[0])
                first.data_process().kill()
                assert read_anew(second, image, 3)[0] != 0, "nobody has it"
            finally:
                registry.start()
            assert read_anew(second, image, 3) == (0, image.contents[3])


@contextmanager
def sharing_node(
    environment: dict[str, str], redis_url: str, name: str
) -> Iterator[RunningSnapshotter]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shares = {
        "PLATFORM_SNAPSHOTTER_NODE": name,
        "PLATFORM_SNAPSHOTTER_PEERS_LISTEN": f"127.0.0.1:{port}",
        "PLATFORM_SNAPSHOTTER_PEERS_REDIS_URL": redis_url,
        "PLATFORM_SNAPSHOTTER_PEERS_TOKEN": "what nodes know and nobody else",
        "PLATFORM_SNAPSHOTTER_READ_DEADLINE_S": "5",
    }
    with (
        running_containerd() as containerd,
        running_snapshotter(containerd, environment | shares) as node,
    ):
        yield node


def test_a_container_keeps_its_layers_when_the_keeper_is_killed(
    node: RunningSnapshotter, image: LazyImage
) -> None:
    node.run("pull", image.name)
    mounted = layer_mounts(node)
    with running(node, image):
        for generation in (1, 2):
            node.keeper().kill()
            assert read(node, generation) == (0, image.contents[generation])
            until(
                lambda since=generation: len(node.logged("keeper.ready")) > since,
                seconds=60,
                what="another keeper is ready",
            )
        assert read(node, 3) == (0, image.contents[3])
    assert len(node.logged("keeper.took_over")) == 2
    assert layer_mounts(node) == mounted
    assert node.logged("layer.not_mounted") == []
