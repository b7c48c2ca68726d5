"""A model that asks for GPUs, on platforms without any, with others, and with the right ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nvml import FakeGpu, FakeNvml
from tests.support.platform import RunningPlatform, running_platform
from tests.support.processes import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def with_gpus(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningPlatform]:
    """A machine whose driver tells of two GPUs; its torch has no CUDA."""
    gpus = FakeGpu("GPU-a"), FakeGpu("GPU-b")
    nvml = FakeNvml(tmp_path_factory.mktemp("nvml"), *gpus)
    with running_platform(environment | nvml.environment()) as running:
        yield running


def refusal(platform: RunningPlatform, name: str) -> dict[str, Any]:
    answer = platform.client.post(f"/v1/models/{name}/invoke", json={"prompt": "Hello"}, timeout=30)
    assert answer.status_code == 503, answer.text
    return dict(answer.json())


def gpus(platform: RunningPlatform) -> list[dict[str, Any]]:
    [node] = platform.client.get("/v1/nodes").json()["data"]
    return list(node["gpus"])


def test_without_any_gpu_the_waiting_request_is_told_so(
    platform: RunningPlatform, smollm2_dir: Path
) -> None:
    platform.deploy("fast", smollm2_dir, resources={"gpus": 1})

    problem = refusal(platform, "fast")

    assert problem["type"] == "/problems/no-capacity"
    assert "a replica needs 1 GPU" in problem["detail"]
    assert "the nodes have no GPU" in problem["detail"]


def test_with_other_gpus_only_it_is_told_which(
    with_gpus: RunningPlatform, smollm2_dir: Path
) -> None:
    with_gpus.deploy("large", smollm2_dir, resources={"gpus": 1, "gpu": "h100"})

    problem = refusal(with_gpus, "large")

    assert problem["type"] == "/problems/no-capacity"
    assert "needs 1 h100 GPU" in problem["detail"]
    assert "the nodes have 2 l4" in problem["detail"]


def test_a_replica_is_started_with_its_gpu_and_gives_it_back_when_it_fails(
    with_gpus: RunningPlatform, smollm2_dir: Path
) -> None:
    with_gpus.deploy("fast", smollm2_dir, resources={"gpus": 1, "gpu": "l4"})

    problem = refusal(with_gpus, "fast")

    assert "torch finds none" in problem["detail"]
    until(
        lambda: [gpu["replica_id"] for gpu in gpus(with_gpus)] == [None, None],
        seconds=10,
        what="both GPUs are free",
    )
    assert [gpu["trouble"] for gpu in gpus(with_gpus)] == [None, None]
