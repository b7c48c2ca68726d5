"""Fixtures of every area: the real model and a real platform."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.containerd import RunningContainerd, running_containerd
from tests.support.platform import RunningPlatform, running_platform
from tests.support.registry import RunningRegistry, running_registry

ROOT = Path(__file__).parent.parent

# Machines here are noisy: how long an example takes says nothing.
settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The process environment for children, without settings of ours that would leak in."""
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - what children inherit
        if not name.startswith("PLATFORM_")
    }


@pytest.fixture(scope="session")
def smollm2_dir(environment: dict[str, str]) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, imported by `scripts/model`."""
    if folder := environment.get("FIRSTLIGHT_TEST_MODEL"):
        return Path(folder)
    done = subprocess.run(
        [ROOT / "scripts" / "model"], env=environment, stdout=subprocess.PIPE, check=True
    )
    return Path(done.stdout.decode().strip())


@pytest.fixture(scope="module")
def platform(environment: dict[str, str], smollm2_dir: Path) -> Iterator[RunningPlatform]:
    """A running platform with SmolLM2 deployed as `chat`, at zero replicas."""
    with running_platform(environment) as running:
        running.deploy("chat", smollm2_dir, scaling={"grace": 1})
        yield running


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A docker-registry of our own; who stops it starts it again."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def containerd() -> Iterator[RunningContainerd]:
    """A containerd of our own; who kills it starts it again."""
    with running_containerd() as running:
        yield running
