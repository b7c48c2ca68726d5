import os
import sys
from collections.abc import Mapping, Sequence

import pytest
from typer.testing import CliRunner

from control_plane.main import app


def test_platform_node_becomes_the_agent_with_what_it_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    became: list[tuple[str, Sequence[str], Mapping[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *told: became.append(told))
    monkeypatch.setenv("PLATFORM_NODE_TOKEN", "a-key-of-node-agents")
    monkeypatch.delenv("PLATFORM_NODE_HOST", raising=False)

    asked = ["node", "--control-plane", "https://fl.example", "--name", "rack-7"]
    result = CliRunner().invoke(app, asked)

    assert result.exit_code == 0, result.output
    ((program, command, environment),) = became
    assert program == sys.executable
    assert list(command) == [sys.executable, "-P", "-m", "worker.main", "node"]
    assert environment["PLATFORM_NODE_CONTROL_PLANE_URL"] == "https://fl.example"
    assert environment["PLATFORM_NODE_ID"] == "rack-7"
    assert environment["PLATFORM_NODE_TOKEN"] == "a-key-of-node-agents"
    assert "PLATFORM_NODE_HOST" not in environment
