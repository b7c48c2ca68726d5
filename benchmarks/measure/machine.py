"""What this machine can do at most: bytes read and products computed a second, on two threads."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

_READ_BYTES = 1 << 30
_SIDE = 2048
_REPEATS = 7


@dataclass(frozen=True, slots=True)
class Machine:
    """Best of several; a second."""

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
    left, right = (torch.randn(_SIDE, _SIDE).bfloat16() for _ in range(2))
    bf16 = _best(lambda: left @ right)
    bytes_left = torch.randint(-127, 127, (_SIDE, _SIDE), dtype=torch.int8)
    bytes_right = torch.randint(-127, 127, (_SIDE, _SIDE), dtype=torch.int8)
    int8 = _best(lambda: torch._int_mm(bytes_left, bytes_right))
    operations = 2.0 * _SIDE**3
    return Machine(_READ_BYTES / read, operations / bf16, operations / int8)


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
