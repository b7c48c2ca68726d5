"""What machines run at their first boot and at every boot: checked, bounded, tried."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST_BOOT = ROOT / "terraform/modules/gpu_pool/files/first-boot"
UNITS = ROOT / "infra/systemd"
SCRIPTS = [FIRST_BOOT, *(UNITS / it for it in ("install", "disks", "credentials", "gpus"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda it: it.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--severity=style", script], capture_output=True, text=True)

    assert (done.stdout, done.returncode) == ("", 0)


def test_user_data_leaves_room_for_settings() -> None:
    # AWS takes 16 KiB of user data; what a deployment says there is about 1 KiB.
    assert FIRST_BOOT.stat().st_size < 8 * 1024


def test_every_unit_that_is_installed_exists_and_runs_what_is_packed() -> None:
    enabled = {
        word
        for line in (UNITS / "install").read_text().replace("\\\n", " ").splitlines()
        if line.startswith("systemctl enable")
        for word in line.split()
        if word.startswith("firstlight-")
    }
    units = {it.name for it in UNITS.glob("firstlight-*")}

    assert enabled == units
    for unit in UNITS.glob("firstlight-*.service"):
        for line in unit.read_text().splitlines():
            if line.startswith(("ExecStart=/opt/firstlight/systemd/", "ExecStartPre=/opt/")):
                assert (UNITS / Path(line.partition("=")[2]).name).stat().st_mode & 0o111


def test_first_boot_refuses_a_package_with_another_digest(tmp_path: Path) -> None:
    """With an `aws` that brings other bytes than were applied, nothing is unpacked."""
    (tmp_path / "aws").write_text('#!/bin/sh\nfor last; do :; done\necho other >"$last"\n')
    (tmp_path / "tar").write_text(f"#!/bin/sh\ntouch {tmp_path}/unpacked\n")
    for program in ("aws", "tar"):
        (tmp_path / program).chmod(0o755)
    told = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "FIRSTLIGHT_REGION": "us-east-1",
        "FIRSTLIGHT_PACKAGE_URL": "s3://weights/node/1.tar.gz",
        "FIRSTLIGHT_PACKAGE_SHA256": "0" * 64,
    }

    done = subprocess.run(["bash", FIRST_BOOT], env=told, capture_output=True, text=True)

    assert done.returncode != 0
    assert "did NOT match" in done.stderr
    assert not (tmp_path / "unpacked").exists()
