"""`platform up` with workers in containers: invoked from zero, and their image not here yet."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.image_build.image import WORKER
from tests.journeys.test_cold_start import assert_adds_up, invoke
from tests.support.containerd import RunningContainerd, running_containerd
from tests.support.platform import RunningPlatform, running_platform
from tests.support.registry import running_registry
from tests.support.worker_image import push

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def containerd() -> Iterator[RunningContainerd]:
    with running_containerd() as running:
        yield running


@pytest.fixture(scope="module")
def contained(
    environment: dict[str, str],
    containerd: RunningContainerd,
    smollm2_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningPlatform]:
    """The real model deployed; its workers' image is in a registry and nowhere else."""
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        settings = {
            "PLATFORM_RUNTIME": "container",
            "PLATFORM_IMAGE": push(WORKER, registry.address, "worker"),
            "PLATFORM_CONTAINERD": str(containerd.socket),
        }
        with running_platform(environment | settings) as platform:
            platform.client.timeout = httpx.Timeout(200)  # an image has close to a gigabyte
            platform.deploy("chat", smollm2_dir, scaling={"standby": 0, "sleep": 0, "grace": 1})
            yield platform


def test_a_request_at_zero_pulls_the_image_starts_a_container_and_is_answered(
    contained: RunningPlatform,
) -> None:
    response = invoke(contained)

    assert response.status_code == 200, response.text
    assert response.json()["output"]
    report = contained.cold_starts("chat", last=1)[0]
    assert_adds_up(report)
    image = next(share for share in report["shares"] if share["stage"] == "image")
    assert (image["source"], image["bytes"] > 100 << 20) == ("origin", True)
    assert image["seconds"] > 0
    runtime = next(share for share in report["shares"] if share["stage"] == "runtime")
    assert runtime["source"] == "container"


def test_the_next_one_finds_the_image_there(contained: RunningPlatform) -> None:
    contained.until_idle("chat", seconds=60)

    response = invoke(contained)

    assert response.status_code == 200, response.text
    report = contained.cold_starts("chat", last=1)[0]
    assert_adds_up(report)
    assert report["from_rung"] == "image"
    assert "image" not in {share["stage"] for share in report["shares"]}
