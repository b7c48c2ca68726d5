"""Containers of what the Dockerfiles make, which nobody has downloaded: workers of `platform up`,
and a control plane in one of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.tether import tethered
from tests.journeys.test_cold_start import PROMPT, assert_adds_up, invoke
from tests.support.built_images import ImageBuilder, image_builder
from tests.support.containerd import SNAPSHOTTER, running_containerd
from tests.support.platform import RunningPlatform, running_platform
from tests.support.processes import until
from tests.support.pushed_model import push_model
from tests.support.registry import RunningRegistry
from tests.support.snapshotter import RunningSnapshotter, running_snapshotter
from worker.node.container.spec import USER

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

SCALING = {"standby": 0, "sleep": 0, "grace": 1}
KEY, NODE_TOKEN = "a-key-of-the-operator", "a-key-of-node-agents"


@pytest.fixture(scope="module")
def node(environment: dict[str, str]) -> Iterator[RunningSnapshotter]:
    """containerd and our snapshotter."""
    with (
        running_containerd() as containerd,
        running_snapshotter(containerd, environment) as snapshotter,
    ):
        yield snapshotter


@pytest.fixture(scope="module")
def images(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImageBuilder]:
    with image_builder(tmp_path_factory.mktemp("images"), environment) as builder:
        yield builder


@pytest.fixture(scope="module")
def worker_image(images: ImageBuilder, registry: RunningRegistry) -> str:
    """In a registry, nowhere else, and without an index; by its tag."""
    return images.push("worker", registry.address)


@pytest.fixture(scope="module")
def far(registry: RunningRegistry, smollm2_dir: Path) -> str:
    """The real model in that registry; its source."""
    files = {path.name: path for path in smollm2_dir.iterdir() if path.is_file()}
    return push_model(files, registry.address, "far")


@pytest.fixture(scope="module")
def contained(
    environment: dict[str, str],
    node: RunningSnapshotter,
    worker_image: str,
    smollm2_dir: Path,
    far: str,
) -> Iterator[RunningPlatform]:
    """The real model, deployed with an image of its own, and from afar."""
    with running_platform(environment | containers("PLATFORM", node, worker_image)) as platform:
        platform.client.timeout = httpx.Timeout(200)
        platform.deploy("chat", smollm2_dir, scaling=SCALING, image=worker_image)
        until(lambda: not is_being_indexed(platform), seconds=240, what="the image is indexed")
        deployed = {"name": "far", "source": far, "scaling": SCALING}
        response = platform.client.put("/v1/models/far", json=deployed)
        assert response.status_code == 202, response.text
        yield platform


def containers(prefix: str, node: RunningSnapshotter, image: str) -> dict[str, str]:
    """Settings of who starts workers as containers of that image."""
    return {
        f"{prefix}_RUNTIME": "container",
        f"{prefix}_IMAGE": image,
        f"{prefix}_CONTAINERD": str(node.containerd.socket),
        f"{prefix}_CONTAINERD_NAMESPACE": node.containerd.namespace,
        f"{prefix}_SNAPSHOTTER": SNAPSHOTTER,
        f"{prefix}_PULL_SOCKET": str(node.state_dir / "pull.sock"),
        f"{prefix}_WEIGHTS_SOCKET": str(node.state_dir / "weights.sock"),
    }


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


@pytest.fixture
def control_plane(
    images: ImageBuilder, registry: RunningRegistry, node: RunningSnapshotter, tmp_path: Path
) -> Iterator[httpx.Client]:
    """One in a container of its image, which may write nothing but its state."""
    containerd, name = node.containerd, "control-plane"
    image = images.push(name, registry.address)
    containerd.ctr("images", "pull", "--plain-http", image)
    port = free_port()
    state = tmp_path / "state"
    state.mkdir(0o700)
    os.chown(state, USER, USER)
    settings = {
        "PLATFORM_PORT": port,
        "PLATFORM_API_KEY": KEY,
        "PLATFORM_NODE_TOKEN": NODE_TOKEN,
        "PLATFORM_PLAIN_HTTP": json.dumps([registry.address]),
    }
    containerd.ctr(
        *("run", "--detach", "--net-host", "--read-only"),
        *("--mount", f"type=bind,src={state},dst=/state,options=rbind:rw"),
        *("--mount", "type=tmpfs,dst=/tmp,options=mode=1777"),
        *(word for each in settings.items() for word in ("--env", "=".join(map(str, each)))),
        *(image, name),
    )
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=200) as client:
        until(lambda: is_ready(client), seconds=60, what="the control plane is ready")
        yield client
    containerd.end_container(name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def agent(
    environment: dict[str, str],
    control_plane: httpx.Client,
    node: RunningSnapshotter,
    worker_image: str,
    tmp_path: Path,
) -> Iterator[None]:
    """Of this machine, whose workers are containers."""
    told = {
        "PLATFORM_NODE_CONTROL_PLANE_URL": str(control_plane.base_url),
        "PLATFORM_NODE_TOKEN": NODE_TOKEN,
        "PLATFORM_NODE_STATE_DIR": str(tmp_path / "node"),
        **containers("PLATFORM_NODE", node, worker_image),
    }
    command = tethered(sys.executable, "-m", "control_plane.main", "node")
    process = subprocess.Popen(command, env=environment | told)
    yield
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


@pytest.mark.usefixtures("agent")
def test_a_control_plane_in_its_container_has_a_model_served_in_another(
    control_plane: httpx.Client, far: str
) -> None:
    deployed = {"name": "far", "source": far, "scaling": SCALING}
    response = control_plane.put("/v1/models/far", json=deployed)
    assert response.status_code == 202, response.text

    answer = control_plane.post("/v1/models/far/invoke", json=PROMPT | {"max_tokens": 4})

    assert answer.status_code == 200, answer.text
    (report,) = control_plane.get("/v1/models/far/coldstarts").json()["data"]
    assert_adds_up(report)
    runtime = next(share for share in report["shares"] if share["stage"] == "runtime")
    assert runtime["source"] == "container"
