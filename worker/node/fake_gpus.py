"""GPUs of no machine, for tests."""

from dataclasses import dataclass, field

from infra.contracts.base import GpuId
from infra.contracts.node import Gpu


def a_gpu(number: int, kind: str = "l4", memory_bytes: int = 24 << 30) -> Gpu:
    """A healthy, idle one."""
    return Gpu(
        gpu_id=GpuId(f"GPU-{number}"),
        kind=kind,
        name=f"NVIDIA {kind.upper()}",
        memory_bytes=memory_bytes,
        driver="570.0",
    )


@dataclass
class FakeGpus:
    """See GpuReader; `put` says what the next reading finds."""

    gpus: dict[GpuId, Gpu] = field(default_factory=dict)

    def put(self, gpu: Gpu) -> None:
        self.gpus[gpu.gpu_id] = gpu

    def read(self) -> tuple[Gpu, ...]:
        return tuple(self.gpus.values())
