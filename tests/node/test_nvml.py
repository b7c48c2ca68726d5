"""What the adapter of NVIDIA's library makes of it; in a process of its own, as it loads once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.contracts.base import GpuId
from infra.contracts.node import Gpu
from tests.support.nvml import GIB, LOST, FakeGpu, FakeNvml
from worker.node.nvml import is_among

pytestmark = pytest.mark.real

READER = """
import json, sys
from worker.node.nvml import open_gpus
reader = open_gpus(json.loads(sys.argv[1]))
for _ in range(2):
    print(json.dumps([gpu.model_dump(mode="json") for gpu in reader.read()]), flush=True)
    sys.stdin.readline()
"""


class Reader:
    """Reads the GPUs once at its start, and once more when it is told to."""

    def __init__(self, environment: dict[str, str], visible: list[str] | None = None) -> None:
        command = [sys.executable, "-c", READER, json.dumps(visible)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        self.first = self._read()

    def again(self) -> list[Gpu]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        gpus = self._read()
        self._process.communicate("\n", timeout=10)
        return gpus

    def _read(self) -> list[Gpu]:
        assert self._process.stdout is not None
        line = next(line for line in self._process.stdout if line.startswith("["))
        return [Gpu.model_validate(gpu) for gpu in json.loads(line)]


def told(gpus: list[Gpu]) -> list[tuple[str, str, str | None]]:
    return [(gpu.gpu_id, gpu.kind, gpu.trouble) for gpu in gpus]


def test_one_gpu_that_cannot_be_read_is_in_trouble_until_it_can_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    nvml = FakeNvml(tmp_path, FakeGpu("GPU-a", used=GIB), FakeGpu("GPU-b", "Tesla T4"))
    reader = Reader(environment | nvml.environment())
    assert told(reader.first) == [("GPU-a", "l4", None), ("GPU-b", "t4", None)]
    assert [(gpu.used_bytes, gpu.memory_bytes) for gpu in reader.first[:1]] == [(GIB, 24 * GIB)]

    nvml.say(FakeGpu("GPU-a", error=LOST), FakeGpu("GPU-b", "Tesla T4", used=GIB))

    again = reader.again()
    assert told(again) == [("GPU-a", "l4", "NVML: GPU is lost"), ("GPU-b", "t4", None)]
    assert [gpu.is_lost for gpu in again] == [True, False]
    assert again[1].used_bytes == GIB


def test_a_gpu_that_is_lost_from_the_start_is_left_out(
    environment: dict[str, str], tmp_path: Path
) -> None:
    nvml = FakeNvml(tmp_path, FakeGpu("GPU-a", error=LOST), FakeGpu("GPU-b"))
    reader = Reader(environment | nvml.environment())
    assert told(reader.first) == [("GPU-b", "l4", None)]
    reader.again()


def test_a_grave_error_is_remembered_and_a_programs_fault_is_not_its_gpus(
    environment: dict[str, str], tmp_path: Path
) -> None:
    gpus = [FakeGpu(f"GPU-{name}") for name in "abc"]
    nvml = FakeNvml(tmp_path, *gpus)
    reader = Reader(environment | nvml.environment())

    nvml.say(*gpus, xids=((0, 31), (1, 79), (2, 48)))

    again = reader.again()
    assert [gpu.trouble for gpu in again] == [None, "XID 79", "XID 48"]
    assert [gpu.is_lost for gpu in again] == [False, True, False]


def test_broken_memory_is_trouble(environment: dict[str, str], tmp_path: Path) -> None:
    gpus = FakeGpu("GPU-a", ecc=1), FakeGpu("GPU-b", ecc=1001), FakeGpu("GPU-c")
    reader = Reader(environment | FakeNvml(tmp_path, *gpus).environment())
    assert [gpu.trouble for gpu in reader.first] == [
        "its memory had errors that could not be corrected: it has to be reset",
        "its memory is broken beyond repair",
        None,
    ]
    reader.again()


def test_parts_of_a_divided_gpu_are_told_in_its_place_and_share_its_errors(
    environment: dict[str, str], tmp_path: Path
) -> None:
    name = "NVIDIA H100 80GB HBM3"
    parts = [FakeGpu(f"MIG-{it}", f"{name} MIG 1g.10gb", total=10 * GIB) for it in "xy"]
    gpus = [FakeGpu("GPU-a"), FakeGpu("GPU-b", name, parts=parts), FakeGpu("GPU-c", name)]
    nvml = FakeNvml(tmp_path, *gpus)
    reader = Reader(environment | nvml.environment())
    assert told(reader.first) == [
        ("GPU-a", "l4", None),
        ("MIG-x", "h100-1g.10gb", None),
        ("MIG-y", "h100-1g.10gb", None),
        ("GPU-c", "h100", None),
    ]

    nvml.say(*gpus, xids=((1, 48),))

    assert [gpu.trouble for gpu in reader.again()] == [None, "XID 48", "XID 48", None]


def test_a_node_tells_of_the_gpus_that_are_left_to_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    nvml = FakeNvml(tmp_path, *(FakeGpu(f"GPU-{name}") for name in "abc"))
    reader = Reader(environment | nvml.environment(), visible=["0", "GPU-c"])
    assert [gpu.gpu_id for gpu in reader.first] == ["GPU-a", "GPU-c"]
    reader.again()
    assert not is_among((), 0, GpuId("GPU-a"))
    assert not is_among(("G",), 0, GpuId("GPU-a"))


def test_without_library_or_driver_there_are_none(
    environment: dict[str, str], tmp_path: Path
) -> None:
    without_library = Reader(environment | {"LD_LIBRARY_PATH": ""})
    assert without_library.first == without_library.again() == []
    nvml = FakeNvml(tmp_path)
    (tmp_path / "nvml.txt").unlink()
    without_driver = Reader(environment | nvml.environment())
    assert without_driver.first == without_driver.again() == []
