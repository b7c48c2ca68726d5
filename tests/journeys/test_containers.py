"""`platform up` with workers in containers of an image that nobody has downloaded."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.image_build.image import WORKER
from tests.journeys.test_cold_start import PROMPT, assert_adds_up, invoke
from tests.support.containerd import SNAPSHOTTER, running_containerd
from tests.support.platform import RunningPlatform, running_platform
from tests.support.processes import until
from tests.support.pushed_model import push_model
from tests.support.registry import running_registry
from tests.support.snapshotter import RunningSnapshotter, running_snapshotter
from tests.support.worker_image import push

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

SCALING = {"standby": 0, "sleep": 0, "grace": 1}


@pytest.fixture(scope="module")
def node(environment: dict[str, str]) -> Iterator[RunningSnapshotter]:
    """containerd and our snapshotter."""
    with (
        running_containerd() as containerd,
        running_snapshotter(containerd, environment) as snapshotter,
    ):
        yield snapshotter


@pytest.fixture(scope="module")
def contained(
    environment: dict[str, str],
    node: RunningSnapshotter,
    smollm2_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningPlatform]:
    """The real model deployed with an image of its own, by its tag. That is in a registry, nowhere
    else, and has no index before."""
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        image = push(WORKER, registry.address, "worker")
        settings = {
            "PLATFORM_RUNTIME": "container",
            "PLATFORM_IMAGE": image,
            "PLATFORM_CONTAINERD": str(node.containerd.socket),
            "PLATFORM_CONTAINERD_NAMESPACE": node.containerd.namespace,
            "PLATFORM_SNAPSHOTTER": SNAPSHOTTER,
            "PLATFORM_PULL_SOCKET": str(node.state_dir / "pull.sock"),
            "PLATFORM_WEIGHTS_SOCKET": str(node.state_dir / "weights.sock"),
        }
        with running_platform(environment | settings) as platform:
            platform.client.timeout = httpx.Timeout(200)
            platform.deploy("chat", smollm2_dir, scaling=SCALING, image=image)
            until(lambda: not is_being_indexed(platform), seconds=120, what="the image is indexed")
            files = {path.name: path for path in smollm2_dir.iterdir() if path.is_file()}
            deployed = {"name": "far", "source": push_model(files, registry.address, "far")}
            response = platform.client.put("/v1/models/far", json=deployed | {"scaling": SCALING})
            assert response.status_code == 202, response.text
            yield platform


def is_being_indexed(platform: RunningPlatform) -> bool:
    return platform.status("chat")["image"]["state"] in {"waiting", "indexing"}


def test_a_deploy_pins_the_image_and_has_it_indexed(contained: RunningPlatform) -> None:
    chat, far = (contained.status(name) for name in ("chat", "far"))

    assert chat["image"]["state"] == "lazy", chat["image"]
    assert "layers are mounted" in chat["image"]["detail"]
    tag, pinned = chat["spec"]["image"], chat["image"]["reference"]
    assert pinned.startswith(tag.removesuffix(":latest") + "@sha256:")
    assert far["image"]["reference"] == pinned, "the platform's own is the same"


def test_a_request_at_zero_mounts_the_image_starts_a_container_and_is_answered(
    contained: RunningPlatform, node: RunningSnapshotter
) -> None:
    response = invoke(contained)

    assert response.status_code == 200, response.text
    assert response.json()["output"]
    report = contained.cold_starts("chat", last=1)[0]
    assert_adds_up(report)
    image = next(share for share in report["shares"] if share["stage"] == "image")
    came = {each["source"]: each["bytes"] for each in image["came"]}
    assert came["origin"] > 1 << 20
    assert image["bytes"] == sum(came.values())
    assert image["bytes_per_s"] > 0
    assert image["seconds"] > 0
    runtime = next(share for share in report["shares"] if share["stage"] == "runtime")
    assert runtime["source"] == "container"
    pins = {line["pin"] for line in node.logged("snapshot.mounted")}
    assert pins - {None}, "the index that was made at deploy is the only one for its nodes"


def test_a_replica_that_is_ready_ends_the_recording_of_its_start(
    contained: RunningPlatform, node: RunningSnapshotter
) -> None:
    assert invoke(contained).status_code == 200

    until(lambda: node.logged("start.recorded"), seconds=60, what="a start is recorded")

    recorded = node.logged("start.recorded")[0]
    assert str(recorded["entrypoint"]).startswith("python3 -m worker.main replica --socket ")


def test_weights_of_a_container_come_by_way_of_the_nodes_store_and_stay_there(
    contained: RunningPlatform,
) -> None:
    """A second container is the first one of an agent that has lost its own cache."""
    for source in ("registry", "cache"):
        response = contained.client.post("/v1/models/far/invoke", json=PROMPT | {"max_tokens": 4})
        assert response.status_code == 200, response.text
        report = contained.cold_starts("far", last=1)[0]
        assert_adds_up(report)
        weights = next(share for share in report["shares"] if share["stage"] == "weights")
        assert (weights["source"], weights["bytes"] > 200 << 20) == (source, True)
        assert (weights["bytes_per_s"] or 0) > 0 or source == "cache"
        image = next(share for share in report["shares"] if share["stage"] == "image")
        assert image["source"]

        contained.until_idle("far")
        shutil.rmtree(contained.state_dir / "node/models")
