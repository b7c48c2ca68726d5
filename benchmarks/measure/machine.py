"""What this machine can do at most: bytes read and products computed a second, on two threads."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_READ_BYTES = 1 << 30
_SIDES = (256, 512, 1024, 2048)
_REPEATS = 7
_MOST_S = 0.5  # a product; without instructions for its type, 2048 x 2048 takes a CPU 12 s


@dataclass(frozen=True, slots=True)
class Machine:
    """Best of several; a second. A CPU without products of a type makes them of floats."""

    read_bytes: float
    bf16_flops: float
    int8_ops: float


def measure_machine(threads: int) -> Machine:
    """In a process of its own, so that nothing of torch stays in this one."""
    command = [sys.executable, "-m", "benchmarks.measure.machine", str(threads)]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}  # noqa: TID251 - for torch alone
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return Machine(**json.loads(done.stdout))


def _measure(threads: int) -> Machine:
    import torch

    torch.set_num_threads(threads)
    data = torch.ones(_READ_BYTES // 4)
    read = _best(lambda: data.sum())
    floats = _products(torch.randn, torch.matmul)
    bf16 = _products(lambda *shape: torch.randn(*shape).bfloat16(), torch.matmul)
    int8 = _products(
        lambda *shape: torch.randint(-127, 127, shape, dtype=torch.int8), torch._int_mm
    )
    return Machine(_READ_BYTES / read, max(floats, bf16), max(floats, int8))


def _products(
    make: "Callable[[int, int], Tensor]", multiply: "Callable[[Tensor, Tensor], Tensor]"
) -> float:
    """Operations a second of square products, the larger the better, as far as they are quick."""
    rate = 0.0
    for side in _SIDES:
        left, right = make(side, side), make(side, side)
        seconds = _best(lambda: multiply(left, right))  # noqa: B023 - called here
        rate = max(rate, 2.0 * side**3 / seconds)
        if 8 * seconds > _MOST_S:
            break
    return rate


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest run after the first."""
    seconds = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    json.dump(asdict(_measure(int(sys.argv[1]))), sys.stdout)
