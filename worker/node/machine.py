"""What this machine has."""

import os
import resource
import time
from pathlib import Path
from typing import Protocol

from infra.contracts.node import Gpu

MOST_OPEN_FILES = 65536


class GpuReader(Protocol):
    """Tells of this machine's GPUs; the port to their driver."""

    def read(self) -> tuple[Gpu, ...]:
        """All that there were at the start, healthy or not, always in the same order.

        Never raises: what cannot be read is in trouble. May block for as long as a driver does.
        """


class NoGpus:
    """A machine without any."""

    def read(self) -> tuple[Gpu, ...]:
        return ()


def cpus() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def open_files() -> int:
    """How many a process may have open that is given as many as may be, within reason."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MOST_OPEN_FILES)


def process_began_s() -> float:
    """CLOCK_MONOTONIC at which this process began, to a hundredth; now, where not known."""
    now_s = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the boot, proc(5) field 22
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - began_s
    except (OSError, IndexError, ValueError, AttributeError):
        return now_s
    return now_s - max(0.0, age_s)
