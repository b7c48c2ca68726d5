import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import Invalid
from worker.settings import NodeSettings, node_settings

KEY = "a-key-of-node-agents"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [it for it in os.environ if it.startswith("PLATFORM_")]:  # noqa: TID251 - cleared
        monkeypatch.delenv(name)


def test_a_key_is_all_that_an_agent_has_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLATFORM_NODE_TOKEN", KEY)

    settings = node_settings()

    assert settings.key() == KEY
    assert settings.id
    assert settings.host is None
    assert KEY not in repr(settings)


def test_the_key_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")

    assert NodeSettings(token_file=file).key() == KEY


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff\xfe" * 20])
def test_a_file_without_a_key_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)

    with pytest.raises(Invalid):
        NodeSettings(token_file=file).key()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="nowhere"):
        NodeSettings(token_file=tmp_path / "nowhere").key()


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, "PLATFORM_NODE_TOKEN_FILE"),
        ({"TOKEN": KEY, "TOKEN_FILE": "/key"}, "PLATFORM_NODE_TOKEN_FILE"),
        ({"TOKEN": "short"}, "PLATFORM_NODE_TOKEN:"),
        ({"TOKEN": KEY, "CONTROL_PLANE_URL": "ftp://x"}, "PLATFORM_NODE_CONTROL_PLANE_URL:"),
        ({"TOKEN": KEY, "ID": "a/b"}, "PLATFORM_NODE_ID:"),
        ({"TOKEN": KEY, "RUNTIME": "container"}, "PLATFORM_NODE_IMAGE"),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], says: str
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(f"PLATFORM_NODE_{name}", value)

    with pytest.raises(Invalid, match=says) as caught:
        node_settings()

    assert told.get("TOKEN", "nothing") not in caught.value.detail


def test_an_agent_that_cannot_start_says_why_in_two_lines(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.main", "node"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: set one of PLATFORM_NODE_TOKEN and PLATFORM_NODE_TOKEN_FILE",
        "hint: see docs/settings.md",
    ]
