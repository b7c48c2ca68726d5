"""`pull`, `ls` and `rm` as programs, against a real containerd."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.contracts.image_pull import Pulled, PullProgress, pull_line
from snapshotter.containerd.layers import FolderLayers
from tests.snapshotter.containerd.conftest import serving
from tests.support.containerd import RunningContainerd
from tests.support.oci import base_layer, push_image
from tests.support.registry import RunningRegistry

pytestmark = pytest.mark.real


def run(
    environment: dict[str, str], socket: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snapshotter.main", *arguments],
        env=environment | {"PLATFORM_SNAPSHOTTER_CONTAINERD_SOCKET": str(socket)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_an_image_is_pulled_listed_and_removed(
    environment: dict[str, str], containerd: RunningContainerd, registry: RunningRegistry
) -> None:
    layer = base_layer()
    image = push_image(registry.address, "programs", [layer])
    socket = containerd.socket
    with serving(containerd.folder, FolderLayers()) as asked:
        pulled = run(environment, socket, "pull", image.reference)
        assert pulled.stdout == f"{image.reference}@{image.digest}\n", pulled.stderr
        assert "1 unpacked" in pulled.stderr

        again = run(environment, socket, "pull", "--json", image.reference)
        lines = [pull_line.validate_json(line) for line in again.stdout.splitlines()]
        assert lines == [
            PullProgress(fraction=0),
            Pulled(digest=image.digest, bytes=0, source="cache"),
        ]
        listed = run(environment, socket, "ls", "--json")
        assert [it["name"] for it in json.loads(listed.stdout)] == [image.reference]

        assert run(environment, socket, "rm", image.reference).returncode == 0
        assert asked.names() == []
        gone = run(environment, socket, "rm", image.reference)
        assert (gone.returncode, gone.stdout) == (1, "")
        assert gone.stderr.startswith(f"error: there is no image {image.reference}\nhint: ")


def test_a_reference_that_names_no_image_is_said_to(
    environment: dict[str, str], containerd: RunningContainerd, registry: RunningRegistry
) -> None:
    unknown = run(environment, containerd.socket, "pull", f"{registry.address}/nothing:1")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: ")
    assert "Traceback" not in unknown.stderr


def test_without_a_containerd_the_hint_says_what_to_do(
    environment: dict[str, str], tmp_path: Path
) -> None:
    away = run(environment, tmp_path / "nothing.sock", "ls")
    assert away.returncode == 1
    assert "hint: start containerd" in away.stderr


def test_a_setting_that_is_none_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    wrong = environment | {"PLATFORM_SNAPSHOTTER_LOG_LEVEL": "loud"}
    done = run(wrong, tmp_path / "nothing.sock", "ls")
    assert done.returncode == 2
    assert done.stderr.startswith("error: PLATFORM_SNAPSHOTTER_LOG_LEVEL: Input should be")
