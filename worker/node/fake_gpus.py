"""GPUs of no machine, for tests."""

from dataclasses import dataclass, field
from threading import Event

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
    """See GpuReader; a reading finds `gpus`, and hangs while `answers` is not set."""

    gpus: tuple[Gpu, ...] = ()
    answers: Event = field(default_factory=Event)
    readings: int = 0

    def __post_init__(self) -> None:
        self.answers.set()

    def read(self) -> tuple[Gpu, ...]:
        self.readings += 1
        self.answers.wait()
        return self.gpus
