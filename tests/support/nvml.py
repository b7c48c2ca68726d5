"""A libnvidia-ml.so.1 that says what a test wants, for real processes."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1 << 30
LOST = 15  # NVML_ERROR_GPU_IS_LOST


@dataclass
class FakeGpu:
    """A device of the machine that the library tells of."""

    uuid: str
    name: str = "NVIDIA L4"
    total: int = 24 * GIB
    used: int = 0
    error: int = 0
    ecc: int = 0
    parts: list["FakeGpu"] = field(default_factory=list)

    def lines(self, kind: str = "gpu") -> list[str]:
        own = f"{kind} {self.uuid} {self.total} {self.used} {self.error} {self.ecc} {self.name}"
        return [own, *(line for part in self.parts for line in part.lines("part"))]


class FakeNvml:
    """The library and the file it reads; `say` replaces what it tells, at once."""

    def __init__(self, folder: Path, *gpus: FakeGpu) -> None:
        self._folder = folder
        self._file = folder / "nvml.txt"
        library, source = folder / "libnvidia-ml.so.1", Path(__file__).with_name("fake_nvml.c")
        command = ["cc", "-O1", "-shared", "-fPIC", "-Wall", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        self.say(*gpus)

    def say(self, *gpus: FakeGpu, xids: tuple[tuple[int, int], ...] = ()) -> None:
        """`xids` are places and numbers of all errors so far."""
        lines = [line for gpu in gpus for line in gpu.lines()]
        lines += [f"xid {place} {number}" for place, number in xids]
        beside = self._file.with_suffix(".new")
        beside.write_text("\n".join(lines) + "\n")
        beside.replace(self._file)

    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {"LD_LIBRARY_PATH": str(self._folder), "FAKE_NVML": str(self._file)}
