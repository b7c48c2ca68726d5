"""GPUs described by files of the Container Device Interface, good ones and hostile ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from worker.node.container.cdi import NO_EDITS, CdiInvalid, read_gpus

NVIDIA: dict[str, Any] = {
    "cdiVersion": "0.6.0",
    "kind": "nvidia.com/gpu",
    "containerEdits": {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": "/dev/nvidiactl", "type": "c", "major": 195, "minor": 255}],
        "mounts": [
            {
                "hostPath": "/usr/lib/libcuda.so.1",
                "containerPath": "/usr/lib/libcuda.so.1",
                "options": ["ro", "nosuid", "nodev", "bind"],
            }
        ],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "update-ldcache"],
            }
        ],
    },
    "devices": [
        {
            "name": "0",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}]
            },
        },
        {
            "name": "1",
            "containerEdits": {
                "deviceNodes": [
                    {
                        "path": "/dev/nvidia1",
                        "type": "c",
                        "major": 195,
                        "minor": 1,
                        "permissions": "rw",
                    }
                ]
            },
        },
    ],
}


def write(folder: Path, spec: Any, name: str = "nvidia.json") -> Path:
    (folder / name).write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return folder


def with_devices(*devices: dict[str, Any]) -> dict[str, Any]:
    return NVIDIA | {"devices": list(devices)}


def test_a_machine_without_such_files_adds_nothing(tmp_path: Path) -> None:
    assert read_gpus([tmp_path, tmp_path / "missing"]) == NO_EDITS


def test_every_gpu_is_added_with_what_all_of_them_need(tmp_path: Path) -> None:
    edits = read_gpus([write(tmp_path, NVIDIA)])

    assert [node["path"] for node in edits.devices] == [
        "/dev/nvidiactl",
        "/dev/nvidia0",
        "/dev/nvidia1",
    ]
    assert edits.devices[1] == {
        "path": "/dev/nvidia0",
        "type": "c",
        "major": 195,
        "minor": 0,
        "fileMode": 0o666,
    }
    assert edits.allowed[2] == {
        "allow": True,
        "type": "c",
        "major": 195,
        "minor": 1,
        "access": "rw",
    }
    assert edits.environment == {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert edits.mounts == (
        {
            "destination": "/usr/lib/libcuda.so.1",
            "type": "bind",
            "source": "/usr/lib/libcuda.so.1",
            "options": ["ro", "nosuid", "nodev", "bind"],
        },
    )
    assert edits.hooks == {
        "createContainer": [
            {
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "update-ldcache"],
                "env": [],
            }
        ]
    }


def test_a_device_that_stands_for_all_is_taken_alone(tmp_path: Path) -> None:
    together = {
        "name": "all",
        "containerEdits": {
            "deviceNodes": [{"path": "/dev/nvidia7", "type": "c", "major": 195, "minor": 7}]
        },
    }

    edits = read_gpus([write(tmp_path, with_devices(*NVIDIA["devices"], together))])

    assert [node["path"] for node in edits.devices] == ["/dev/nvidiactl", "/dev/nvidia7"]


def test_numbers_that_a_file_leaves_out_are_those_of_the_device(tmp_path: Path) -> None:
    null = {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}}

    edits = read_gpus([write(tmp_path, with_devices(null))])

    assert (edits.devices[1]["type"], edits.devices[1]["major"], edits.devices[1]["minor"]) == (
        "c",
        1,
        3,
    )


def test_yaml_is_read_too_and_a_later_folder_wins(tmp_path: Path) -> None:
    (first := tmp_path / "a").mkdir()
    (second := tmp_path / "b").mkdir()
    write(first, NVIDIA)
    yaml = """
    cdiVersion: 0.5.0
    kind: nvidia.com/gpu
    devices:
      - name: "0"
        containerEdits:
          deviceNodes:
            - {path: /dev/nvidia9, type: c, major: 195, minor: 9}
    """
    write(second, yaml, "nvidia.yaml")

    edits = read_gpus([first, second])

    assert [node["path"] for node in edits.devices] == ["/dev/nvidia9"]


def test_devices_that_are_no_gpus_stay_out(tmp_path: Path) -> None:
    assert read_gpus([write(tmp_path, NVIDIA | {"kind": "vendor.com/nic"})]) == NO_EDITS


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("{", "nvidia.json"),
        ("[]", "nvidia.json"),
        (NVIDIA | {"cdiVersion": "9.0.0"}, "cdiVersion"),
        (NVIDIA | {"devices": [{"name": "../x", "containerEdits": {}}]}, "name"),
        (
            with_devices({"name": "0", "containerEdits": {"deviceNodes": [{"path": "dev/x"}]}}),
            "path",
        ),
        (
            with_devices({"name": "0", "containerEdits": {"deviceNodes": [{"path": "/no/such"}]}}),
            "/no/such",
        ),
        (NVIDIA | {"devices": [{"name": str(i), "containerEdits": {}} for i in range(600)]}, "512"),
        ("[" * 100 + "]" * 100, "deeper"),
        ("a: &a [x, x]\nb: [*a, *a]", "aliases"),
        ("x" * (2 << 20), "larger"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, spec: Any, why: str) -> None:
    with pytest.raises(CdiInvalid, match=why) as refused:
        read_gpus([write(tmp_path, spec)])
    assert "nvidia.json" in str(refused.value)


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(65):
        write(tmp_path, NVIDIA, f"{number}.json")

    with pytest.raises(CdiInvalid, match="65 files"):
        read_gpus([tmp_path])
