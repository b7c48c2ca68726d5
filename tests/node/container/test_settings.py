"""What workers run as is the operator's setting, for any agent and that of `platform up`."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from control_plane.capacity.local import LOCAL, LocalAgent
from control_plane.settings import Settings
from worker.settings import NodeSettings, container_environment

NODE: dict[str, Any] = {"token": "t" * 16, "id": "n1", "state_dir": "/state"}


def test_workers_are_processes_unless_said_otherwise() -> None:
    assert NodeSettings(**NODE).runtime == "process"
    assert Settings().runtime == "process"


def test_containers_need_an_image() -> None:
    with pytest.raises(ValidationError, match="PLATFORM_NODE_IMAGE"):
        NodeSettings(**NODE, runtime="container")
    with pytest.raises(ValidationError, match="PLATFORM_IMAGE"):
        Settings(runtime="container")


def test_the_agent_of_platform_up_is_told_and_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"PLATFORM_NODE_RUNTIME": "container", "PLATFORM_NODE_IMAGE": "registry/worker:1"}
    agent = LocalAgent("http://127.0.0.1:1", "t" * 16, Path("/state"), {}, runtime=told)

    for name, value in agent.variables(LOCAL).items():
        monkeypatch.setenv(name, value)
    settings = NodeSettings()

    assert (settings.runtime, settings.image) == ("container", "registry/worker:1")


def test_containers_inherit_nothing_of_the_machines_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    environment = container_environment()

    assert not {"AWS_SECRET_ACCESS_KEY", "PATH", "HOME"} & set(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
