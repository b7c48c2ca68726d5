"""What lies beside an image is looked up once, all of it at the same time."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue

import pytest

from infra.clock import SystemClock
from infra.errors import ImageInvalid, PlatformError, SourceUnavailable, StoreUnavailable
from infra.registry.manifest import MANIFEST, Descriptor
from infra.registry.reference import Reference
from snapshotter.containerd.index_files import IndexFiles
from snapshotter.containerd.index_maker import IndexMaker
from snapshotter.containerd.layers import FoundLayer
from snapshotter.containerd.lookups import Lookups
from snapshotter.containerd.read_layers import ReadLayers
from snapshotter.index.build import index_layer
from snapshotter.index.erofs_writer import erofs_image
from snapshotter.index.image_index import ARTIFACT_TYPE, LAYER
from snapshotter.index.layer_index import LayerIndex
from snapshotter.index.publish import Publisher
from snapshotter.registry.referrers import attach
from snapshotter.trace.files import TraceFiles
from snapshotter.trace.shared import push_trace
from snapshotter.trace.trace import Touch, Trace
from tests.snapshotter.images import GZIP_LAYER, add_image, index_beside
from tests.snapshotter.registry_server import Clients, RegistryServer, registry_server, status
from tests.snapshotter.tars import layer_tar, words

BASE = layer_tar({"bin/sh": words(20_000)})
TOP = layer_tar({"app.py": words(3000, 2), "lib/l.so": words(30_000, 3)})
_PATIENCE_S = 60


@dataclass
class World:
    """An indexed image of two layers in a registry, and a node that has nothing of it."""

    server: RegistryServer
    clients: Clients
    image: Reference
    layers: list[str]
    files: IndexFiles
    traces: TraceFiles
    images_heard: SimpleQueue[Reference] = field(default_factory=SimpleQueue)
    layers_heard: SimpleQueue[FoundLayer] = field(default_factory=SimpleQueue)

    def lookups(self) -> Lookups:
        return Lookups(
            self.clients(),
            self.files,
            self.traces,
            on_image=lambda image, index: self.images_heard.put(image),
            on_layer=self.layers_heard.put,
            clock=SystemClock.start(),
        )

    def asked(self) -> int:
        """How many requests the registry had since it was last asked."""
        with self.server.lock:
            num_asked = len(self.server.requests)
            self.server.requests.clear()
        return num_asked


@pytest.fixture(params=[True, False], ids=["lists referrers", "keeps no list"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    clients = Clients()
    with registry_server(lists_referrers=request.param) as server:
        image = add_image(server, [BASE, TOP])
        pinned = image.at(str(image.digest))
        Publisher(clients(), architecture="amd64", least_layer_bytes=0).index(image)
        layers = [layer["digest"] for layer in clients().manifest(pinned).content["layers"]]
        files, traces = IndexFiles(tmp_path / "indexes"), TraceFiles(tmp_path / "traces")
        world = World(server, clients, pinned, layers, files, traces)
        world.asked()
        yield world
        for thread in threading.enumerate():
            if thread.name == "lookup":
                thread.join(_PATIENCE_S)
        clients.close()


def test_one_look_up_serves_all_who_ask_for_a_layer(world: World) -> None:
    lookups = world.lookups()

    found = [lookups.of(world.image).layer(layer) for layer in (*world.layers, *world.layers)]

    assert found[:2] == found[2:]
    assert {it.name for it in found if it} == {
        world.layers_heard.get(timeout=60).name for _ in "ab"
    }
    assert world.images_heard.get(timeout=_PATIENCE_S) == world.image
    # two ways to ask what is there, the artifact, two indexes, and the manifest meanwhile
    assert world.asked() <= 6
    assert lookups.of(world.image).layer(f"sha256:{'0' * 64}") is None


def test_a_failed_look_up_is_not_remembered(world: World) -> None:
    lookups = world.lookups()
    world.server.fail(r"GET .*/(referrers|manifests)/", *[status(401)] * 8)
    with pytest.raises(PlatformError):
        lookups.of(world.image).layer(world.layers[0])
    world.server.faults.clear()

    assert lookups.of(world.image).layer(world.layers[0]) is not None


def test_an_index_that_was_removed_with_its_layer_is_fetched_again(world: World) -> None:
    lookups = world.lookups()
    found = [lookups.of(world.image).layer(layer) for layer in world.layers]
    assert found[0] is not None
    world.files.remove(found[0].name)

    assert lookups.of(world.image).layer(world.layers[0]) == found[0]
    assert world.files.has(found[0].name)


def test_a_trace_is_brought_beside_the_indexes(world: World) -> None:
    trace = Trace(str(world.image.digest), "", (Touch(world.layers[0], 0),))
    push_trace(world.clients(), world.image, trace)

    world.lookups().of(world.image)

    for _ in range(2):  # the image is expected at once, and again when the trace is here
        assert world.images_heard.get(timeout=_PATIENCE_S) == world.image
    assert world.traces.find(trace.image) == trace


def test_an_image_without_index_is_looked_up_again(world: World) -> None:
    other = add_image(world.server, [layer_tar({"x": b"1"})], tag="other")
    pinned = other.at(str(other.digest))
    lookups = world.lookups()
    assert lookups.of(pinned).layer(world.layers[0]) is None

    Publisher(world.clients(), architecture="amd64", least_layer_bytes=0).index(other)

    (layer,) = (it["digest"] for it in world.clients().manifest(pinned).content["layers"])
    assert lookups.of(pinned).layer(layer) is not None


def test_a_file_system_is_made_once_and_kept(world: World) -> None:
    (layer, _) = world.layers
    found = world.lookups().of(world.image).layer(layer)
    assert found is not None
    read = ReadLayers(world.files)

    read.expect(found.name, layer)
    taken = read.take(found.name, layer)

    index = LayerIndex.parse(world.files.read(found.name), layer=layer)
    assert taken.metadata == erofs_image(index.inodes)

    def unwanted() -> bytes:
        raise AssertionError("it is kept")

    assert world.files.metadata(found.name, unwanted) == taken.metadata


def test_what_was_looked_up_and_never_mounted_goes_when_the_program_starts(tmp_path: Path) -> None:
    files = IndexFiles(tmp_path)
    kept, other = (f"sha256:{digit * 64}" for digit in "12")
    for name in (kept, other):
        files.keep(name, b"index")
        files.metadata(name, lambda: b"metadata")

    files.keep_only([kept])

    assert files.has(kept)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".erofs", ".index"]


def test_metadata_that_a_crash_has_damaged_is_made_anew(tmp_path: Path) -> None:
    files = IndexFiles(tmp_path)
    name = f"sha256:{'1' * 64}"
    files.metadata(name, lambda: b"as it was")
    (kept,) = tmp_path.iterdir()
    for damaged in (b"", kept.read_bytes()[:-1], bytes(40)):
        kept.write_bytes(damaged)
        assert files.metadata(name, lambda: b"as it was") == b"as it was"


def test_an_index_is_taken_for_its_own_layer_only(world: World) -> None:
    layer, other = world.layers
    found = world.lookups().of(world.image).layer(layer)
    assert found is not None
    read = ReadLayers(world.files)

    with pytest.raises(ImageInvalid):
        read.take(found.name, other)
    read.expect(found.name, layer)
    with pytest.raises(ImageInvalid):
        read.take(found.name, other)
    with pytest.raises(StoreUnavailable):
        read.take(f"sha256:{'0' * 64}", layer)
    assert read.take(found.name, layer).layer == layer


def test_an_index_is_fetched_of_layers_of_its_image_only_and_with_their_size(world: World) -> None:
    manifest = world.clients().manifest(world.image)
    raw = json.dumps({**manifest.content, "layers": manifest.content["layers"][:1]}).encode()
    shorter = f"sha256:{sha256(raw).hexdigest()}"
    world.server.manifests[shorter] = (MANIFEST, raw)
    beside = index_beside(world.clients(), world.image, str(world.image.digest))
    assert beside is not None
    blobs = [replace(blob, annotations={LAYER: it}) for it, blob in beside.layers.items()]
    subject = Descriptor(MANIFEST, shorter, len(raw), {})
    artifact = {"artifact_type": ARTIFACT_TYPE, "blobs": blobs}
    attach(world.clients(), world.image, subject, **artifact)  # type: ignore[arg-type]

    lookup = world.lookups().of(world.image.at(shorter))

    found = lookup.layer(world.layers[0])
    assert found is not None
    assert found.spec["size"] == manifest.content["layers"][0]["size"]
    assert lookup.layer(world.layers[1]) is None


def put_another_index_beside(world: World) -> str:
    """As whoever may push can: the layers' indexes, each for the other layer; its digest."""
    beside = index_beside(world.clients(), world.image, str(world.image.digest))
    assert beside is not None
    one, other = world.layers
    swapped = [
        replace(beside.layers[one], annotations={LAYER: other}),
        replace(beside.layers[other], annotations={LAYER: one}),
    ]
    subject = world.clients().manifest(world.image).descriptor
    pushed = attach(
        world.clients(), world.image, subject, artifact_type=ARTIFACT_TYPE, blobs=swapped
    )
    return pushed.digest


def test_whose_index_is_pinned_has_that_one_whatever_lies_beside_the_image(world: World) -> None:
    beside = index_beside(world.clients(), world.image, str(world.image.digest))
    assert beside is not None
    pin = beside.artifact
    named = {layer: described.digest for layer, described in beside.layers.items()}
    other = put_another_index_beside(world)
    lookups = world.lookups()

    for layer in world.layers:
        pinned = lookups.of(world.image, pin).layer(layer)
        assert pinned is not None and (pinned.name, pinned.spec["pin"]) == (named[layer], pin)
        by_other = lookups.of(world.image, other).layer(layer)
        assert by_other is not None and by_other.name != named[layer]

    for key in (pin, *(key for key in world.server.manifests if key.endswith(f"@{pin}"))):
        world.server.manifests.pop(key, None)
    with pytest.raises(PlatformError):
        world.lookups().of(world.image, pin).layer(world.layers[0])


# -- after an upgrade ------------------------------------------------------------------------------


def left_by_an_earlier_version(world: World, layer: str) -> str:
    """A layer that is mounted by its index, which this version cannot read."""
    found = world.lookups().of(world.image).layer(layer)
    assert found is not None
    old = b"FLINDEX1" + world.files.read(found.name)[8:]
    name = f"sha256:{sha256(old).hexdigest()}"
    world.files.keep(name, old)
    return name


@pytest.mark.parametrize("is_indexed_again", [True, False])
def test_an_index_of_an_earlier_version_is_made_anew_once(
    world: World, is_indexed_again: bool
) -> None:
    layer = world.layers[0]
    name = left_by_an_earlier_version(world, layer)
    if not is_indexed_again:
        server = world.server
        server.manifests = {
            key: (media_type, raw)
            for key, (media_type, raw) in server.manifests.items()
            if b"subject" not in raw and not key.startswith("sha256-")
        }
    remake = partial(IndexMaker(world.clients()).make, world.image, layer)
    world.asked()

    read = ReadLayers(world.files).take(name, layer, remake=remake)

    paths = [path for _, path in world.server.requests]
    assert any(path.endswith(f"/blobs/{layer}") for path in paths) is not is_indexed_again
    assert erofs_image(index_of(world, layer).inodes) == read.metadata
    world.asked()
    again = ReadLayers(world.files).take(name, layer, remake=remake)
    assert (again.metadata, list(again.table)) == (read.metadata, list(read.table))
    assert world.asked() == 0, "it is kept, and needs no network"
    world.files.remove(name)
    assert not list(world.files._folder.glob(f"{name.removeprefix('sha256:')}*"))


def index_of(world: World, layer: str) -> LayerIndex:
    """As it is made of the layer itself."""
    path = world.files._folder.parent / "layer"
    path.write_bytes(world.server.blobs[layer])
    return index_layer(path, layer=layer, media_type=GZIP_LAYER)


def test_of_a_layer_whose_index_was_pinned_nothing_beside_the_image_is_taken(world: World) -> None:
    layer = world.layers[0]
    world.asked()

    made = IndexMaker(world.clients()).make(world.image, layer, is_pinned=True)

    assert made == index_of(world, layer).packed()
    assert not any("referrers" in path or "sha256-" in path for _, path in world.server.requests)


def test_an_index_that_cannot_be_made_anew_now_is_tried_again(world: World) -> None:
    layer = world.layers[0]
    name = left_by_an_earlier_version(world, layer)
    remake = partial(IndexMaker(world.clients()).make, world.image, layer)
    read = ReadLayers(world.files)
    world.server.fail("GET", *[status(503)] * 40)
    with pytest.raises(SourceUnavailable):
        read.take(name, layer, remake=remake)
    world.server.faults.clear()

    assert read.take(name, layer, remake=remake).layer == layer


def test_a_layer_that_its_image_does_not_have_is_not_indexed(world: World) -> None:
    with pytest.raises(ImageInvalid, match="has no layer"):
        IndexMaker(world.clients()).make(world.image, f"sha256:{'0' * 64}")
