"""Fixtures of every area: the real model and a real platform; and what is collected, quickly."""

import gc
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
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


ALL_REAL = re.compile(r"^pytestmark = .*\bmark\.real\b", re.M)
SOME_REAL = re.compile(r"\bmark\.real\b")


@cache
def says(path: Path, what: re.Pattern[str]) -> bool:
    return path.exists() and what.search(path.read_text()) is not None


def may_be_real(path: Path) -> bool:
    """Whether a file of tests may have real ones: it says so, or its folder's fixtures do."""
    return says(path, SOME_REAL) or says(path.with_name("conftest.py"), SOME_REAL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Who runs one kind of tests does not import the files of the other: most of a start."""
    if collection_path.match("test_*.py"):
        match config.getoption("markexpr"):
            case "real" if not may_be_real(collection_path):
                return True
            case "not real" if says(collection_path, ALL_REAL):
                return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take longest come first: of several workers none is left alone with one."""
    longest: dict[Path, float] = defaultdict(float)
    for item in items:
        if item.get_closest_marker("real") and not may_be_real(item.path):
            raise pytest.UsageError(f"{item.path} has a real test and does not say mark.real")
        if timeout := item.get_closest_marker("timeout"):
            longest[item.path] = max(longest[item.path], timeout.args[0])
    items.sort(key=lambda item: -longest[item.path])


def pytest_collection() -> None:
    """What is collected lives to the end: looking through it again and again finds nothing."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


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
