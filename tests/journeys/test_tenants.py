"""Keys, tenants and usage on the real platform."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.platform import RunningPlatform, running_platform

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

ROOT = "sesame-sesame-sesame"
BODY = {"prompt": "Hello", "max_tokens": 5}


def caller(platform: RunningPlatform, key: str) -> httpx.Client:
    return httpx.Client(
        base_url=platform.url, timeout=60, headers={"Authorization": f"Bearer {key}"}
    )


def test_a_tenant_deploys_calls_and_is_counted(
    environment: dict[str, str], smollm2_dir: Path
) -> None:
    with (
        running_platform(environment | {"PLATFORM_API_KEY": ROOT}) as platform,
        caller(platform, ROOT) as root,
    ):
        made = root.post("/v1/keys", json={"name": "app", "tenant": "acme"}).json()
        with caller(platform, made["key"]) as acme:
            spec = {"name": "chat", "source": f"file://{smollm2_dir}"}
            assert acme.put("/v1/models/chat", json=spec).status_code == 202
            whole = acme.post("/v1/models/chat/invoke", json=BODY)
            streamed = acme.post("/v1/models/chat/invoke", json=BODY | {"stream": True})
            [row] = acme.get("/v1/usage").json()["data"]
            root.delete(f"/v1/keys/{made['status']['key_id']}")
            refused = acme.post("/v1/models/chat/invoke", json=BODY)

    usage = whole.json()["usage"]
    assert whole.status_code == streamed.status_code == 200
    assert (row["tenant"], row["model"], row["requests"]) == ("acme", "chat", 2)
    assert row["prompt_tokens"] == 2 * usage["prompt_tokens"]
    assert row["completion_tokens"] == 2 * usage["completion_tokens"] == 10
    assert "firstlight-usage" not in streamed.text
    assert refused.status_code == 401


def test_without_a_key_it_listens_on_this_machine_only(
    environment: dict[str, str], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "control_plane.main", "up", "--host", "0.0.0.0", "--port", "0"],
        env=environment | {"PLATFORM_STATE_DIR": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 1
    assert "error: there is no API key" in ended.stderr
    assert "hint: set PLATFORM_API_KEY" in ended.stderr
