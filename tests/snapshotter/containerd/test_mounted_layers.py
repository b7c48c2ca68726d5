"""Layers that are mounted instead of unpacked: when, how often, and until when."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import StatusCode

from infra.containerd.client import Containerd
from infra.containerd.labels import ENTRYPOINT, READ, READY
from infra.containerd.protos import snapshots_pb2 as pb
from infra.contracts.stage import Came, Moved
from infra.errors import SourceUnavailable
from snapshotter.containerd.layers import ContainerStart, FolderLayers, FoundLayer, WantedLayer
from snapshotter.containerd.snapshotter import TARGET
from tests.snapshotter.containerd.conftest import Asked, refusal, serving

REFERENCE = "registry.example/image:1"
MANIFEST = "sha256:" + "0" * 64
LAYER = "sha256:" + "1" * 64
IMAGE = f"registry.example/image@{MANIFEST}"


@pytest.fixture
def layers(tmp_path: Path) -> FolderLayers:
    folder = tmp_path / "layer"
    folder.mkdir(mode=0o711)
    return FolderLayers(known={LAYER: folder})


@pytest.fixture
def asked(tmp_path: Path, layers: FolderLayers) -> Iterator[Asked]:
    with serving(tmp_path, layers) as asked:
        yield asked


def labels(target: str, layer: str = LAYER) -> dict[str, str]:
    return {TARGET: target, **WantedLayer(REFERENCE, MANIFEST, layer).labels()}


def unpack(asked: Asked, target: str, parent: str = "", layer: str = LAYER) -> StatusCode:
    """What containerd does to unpack a layer, up to the refusal."""
    return refusal(asked.prepare_labelled, f"extract {target}", parent, labels(target, layer))


def test_a_layer_that_can_be_mounted_is_there_at_once(asked: Asked, layers: FolderLayers) -> None:
    assert unpack(asked, "chain") is StatusCode.ALREADY_EXISTS

    # the filter by which containerd 1.6 finds what was made (metadata/snapshot.go)
    assert asked.names(f'labels."{TARGET}"==chain,parent==""') == ["chain"]
    assert asked.stat("chain").labels == labels("chain")
    assert set(layers.mounted) == {LAYER}
    mount = asked.prepare("container", "chain")
    assert mount.options[-1] == f"lowerdir={asked.folder}/snapshots/1/fs"
    assert (asked.folder / "snapshots/1/fs").resolve() == layers.known[LAYER]
    assert (asked.folder / "snapshots/2/fs").stat().st_mode & 0o7777 == 0o711
    assert asked.usage("chain").size == 0


def test_a_layer_without_index_is_unpacked(asked: Asked, layers: FolderLayers) -> None:
    other = "sha256:" + "2" * 64
    mount = asked.prepare_labelled("extract", "", labels("chain", other))
    assert mount.type == "bind"
    asked.commit("extract", "chain")
    assert unpack(asked, "next", "chain") is StatusCode.ALREADY_EXISTS
    assert asked.prepare("container", "next").options[-1].endswith(f"/2/fs:{mount.source}")


def test_a_layer_whose_index_cannot_be_had_is_unpacked(tmp_path: Path) -> None:
    @dataclass
    class Broken(FolderLayers):
        mounts: bool = False

        def find(self, wanted: WantedLayer) -> FoundLayer | None:
            if not self.mounts:
                raise SourceUnavailable("the registry does not answer")
            return FoundLayer("name", {})

        def mount(self, layer: FoundLayer) -> Path:
            raise SourceUnavailable("the index is damaged")

    for mounts in (False, True):
        folder = tmp_path / str(mounts)
        folder.mkdir()
        with serving(folder, Broken(mounts=mounts)) as asked:
            assert asked.prepare_labelled("extract", "", labels("chain")).type == "bind"
            assert asked.names() == ["extract"]


def test_an_ordinary_snapshot_asks_no_registry(asked: Asked, layers: FolderLayers) -> None:
    assert asked.prepare_labelled("extract", "", {TARGET: "chain"}).type == "bind"
    assert asked.prepare("container").type == "bind"
    assert not layers.mounted


def test_a_layer_is_mounted_once_and_until_its_last_snapshot_is_removed(
    asked: Asked, layers: FolderLayers
) -> None:
    asked.committed("base")
    layer = layers.known.pop(LAYER)
    assert asked.prepare_labelled("first", "", labels("none")).type == "bind"
    layers.known[LAYER] = layer
    unpack(asked, "chain")
    del layers.known[LAYER]  # it is not asked for again

    assert unpack(asked, "other chain", "base") is StatusCode.ALREADY_EXISTS
    asked.remove("chain")
    assert set(layers.mounted) == {LAYER}
    asked.remove("other chain")
    assert not layers.mounted
    assert layer.is_dir()


def test_a_layer_that_is_mounted_by_another_index_than_the_pinned_one_is_unpacked(
    tmp_path: Path, layers: FolderLayers
) -> None:
    class Indexed(FolderLayers):
        def find(self, wanted: WantedLayer) -> FoundLayer | None:
            folder = str(self.known[wanted.layer])
            return FoundLayer(wanted.index or "listed", {"folder": folder})

    def pinned(target: str, index: str) -> dict[str, str]:
        return {TARGET: target, **WantedLayer(REFERENCE, MANIFEST, LAYER, index).labels()}

    indexed = Indexed(known=layers.known)
    with serving(tmp_path, indexed) as asked:
        assert unpack(asked, "by anything") is StatusCode.ALREADY_EXISTS
        mount = asked.prepare_labelled("extract", "", pinned("by one", "one"))
        assert mount.type == "bind"
        assert set(indexed.mounted) == {"listed"}

        asked.remove("by anything")
        by_one = pinned("again by one", "one")
        assert refusal(asked.prepare_labelled, "e", "", by_one) is StatusCode.ALREADY_EXISTS
        assert unpack(asked, "by anything") is StatusCode.ALREADY_EXISTS, "it takes what is there"
        assert asked.prepare_labelled("f", "", pinned("by two", "two")).type == "bind"
        assert set(indexed.mounted) == {"one"}


def test_what_is_there_is_taken_by_another_namespace(asked: Asked) -> None:
    unpack(asked, "chain")
    assert unpack(asked, "chain") is StatusCode.ALREADY_EXISTS
    assert asked.names() == ["chain"]


def test_the_same_chain_on_another_parent_is_unpacked(asked: Asked) -> None:
    asked.committed("ordinary")
    unpack(asked, "chain")
    mount = asked.prepare_labelled("extract", "ordinary", labels("chain"))
    assert mount.type == "overlay"


def test_a_parent_that_is_not_there_is_refused_before_anything_is_mounted(
    asked: Asked, layers: FolderLayers
) -> None:
    assert unpack(asked, "chain", "nothing") is StatusCode.NOT_FOUND
    assert not layers.mounted


def test_many_at_once_make_one_snapshot(asked: Asked) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: unpack(asked, "chain"), range(32)))
    assert set(answers) == {StatusCode.ALREADY_EXISTS}
    assert asked.names() == ["chain"]
    assert asked.folders() == ["1"]


def test_a_restart_mounts_what_is_needed_without_asking_the_registry(
    tmp_path: Path, layers: FolderLayers
) -> None:
    with serving(tmp_path, layers) as asked:
        unpack(asked, "chain")
        mount = asked.prepare("container", "chain")
    layers.mounted.clear()
    layers.known.clear()

    with serving(tmp_path, layers) as asked:
        assert set(layers.mounted) == {LAYER}
        assert asked.mounts("container") == mount


def test_a_layer_that_cannot_be_mounted_again_is_unavailable_until_it_can(
    tmp_path: Path, layers: FolderLayers
) -> None:
    @dataclass
    class Failing(FolderLayers):
        fails: bool = False

        def mount(self, layer: FoundLayer) -> Path:
            if self.fails:
                raise SourceUnavailable("the file system is away")
            return super().mount(layer)

    failing = Failing(known=layers.known)
    with serving(tmp_path, failing) as asked:
        unpack(asked, "chain")
    failing.fails = True
    with serving(tmp_path, failing) as asked:
        with Containerd(tmp_path / "snapshotter.sock", away_s=0) as impatient:
            once = Asked(tmp_path, impatient)
            assert refusal(once.prepare, "container", "chain") is StatusCode.UNAVAILABLE
        assert asked.stat("chain").name == "chain"
        failing.fails = False
        assert asked.prepare("container", "chain").type == "overlay"


def test_a_container_that_is_about_to_read_layers_is_announced(
    asked: Asked, layers: FolderLayers
) -> None:
    unpack(asked, "chain")
    asked.prepare_labelled("extract", "chain", {TARGET: "upper"})
    assert layers.started == []

    asked.prepare("container", "chain")
    asked.committed("ordinary")
    asked.prepare("another", "ordinary")

    assert layers.started == [ContainerStart("container", IMAGE, (LAYER,), None)]


def test_a_container_that_says_what_it_runs_says_once_that_it_is_ready(
    asked: Asked, layers: FolderLayers
) -> None:
    unpack(asked, "chain")
    asked.prepare_labelled("container", "chain", {ENTRYPOINT: "python3 serve"})
    asked.prepare("unknown", "chain")
    asked.committed("ordinary")
    asked.prepare_labelled("unpacked", "ordinary", {ENTRYPOINT: "python3 serve"})
    start = ContainerStart("container", IMAGE, (LAYER,), "python3 serve")
    assert layers.started[0] == start
    assert layers.are_ready == []

    for name in ("container", "unknown", "unpacked", "container"):
        said = asked.update(pb.Info(name=name, labels={READY: "true"}), f"labels.{READY}")
        assert said.labels[READY] == "true"
    asked.update(pb.Info(name="container", labels={"note": "x"}), "labels.note")

    assert layers.are_ready == [start]


def test_a_container_that_starts_tells_what_it_has_read_of_its_image(
    asked: Asked, layers: FolderLayers
) -> None:
    unpack(asked, "chain")
    asked.prepare_labelled("container", "chain", {ENTRYPOINT: "python3 serve"})
    asked.prepare("unknown", "chain")
    assert READ not in asked.stat("container").labels
    layers.moved = Moved(came=(Came(source="origin", bytes=5),), seconds=0.5)

    told = {name: asked.stat(name).labels for name in ("container", "unknown", "chain")}

    assert Moved.model_validate_json(told["container"][READ]) == layers.moved
    assert READ not in told["unknown"]
    assert READ not in told["chain"]
    asked.update(pb.Info(name="container", labels={READY: "true"}), f"labels.{READY}")
    assert READ not in asked.stat("container").labels
