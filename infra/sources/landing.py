"""Memory where a download lands, its pages made before the bytes come."""

import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.paging import (
    FREE,
    HUGE,
    HUGE_PAGE_BYTES,
    POPULATE_WRITE,
    address_of,
    advise,
    map_file_at,
    steps,
)

STEP_BYTES: Final = 32 << 20


class Landing:
    """Anonymous memory of huge pages where the kernel has them.

    The first touch of fresh memory costs more than receiving what is written into it: 3 GB/s on
    the machine where this was made, 10 with huge pages, 15 where it was touched before.
    """

    def __init__(self, size: int) -> None:
        """Raises OSError where there is no room for it."""
        self._memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = address_of(self._memory)
        self._starts: list[int] = []
        self._lock = threading.Lock()  # guards what is given back: many threads read a file
        self._given_bytes = 0
        self._is_wanted = threading.Event()
        self._is_wanted.set()
        advise(self._address, len(self._memory), HUGE)

    def __len__(self) -> int:
        return len(self._memory)

    def touch(self) -> None:
        """Makes the pages, front to back; what is written there meanwhile stays."""
        for start, size in steps(len(self._memory), STEP_BYTES):
            if not self._is_wanted.is_set() or not advise(
                self._address + start, size, POPULATE_WRITE
            ):
                return  # an older kernel, or no more memory: pages come as they are written

    def touch_beside(self) -> None:
        """The same in a thread."""
        threading.Thread(target=self.touch, name="landing", daemon=True).start()

    def rest(self) -> None:
        """Until bytes come the kernel may take the pages back, and does when memory is short."""
        advise(self._address, len(self._memory), FREE)

    def give_back(self, size: int) -> None:
        """So many bytes of it are the machine's again, for the pages of a file that is read now.

        A virtual machine's memory costs its first touch whoever touches it; what was touched here
        is reused at once, before its host takes it away.
        """
        with self._lock:
            start = self._given_bytes
            self._given_bytes = end = min(start + size, len(self._memory))
        if start < end:
            advise(self._address + start, end - start, mmap.MADV_DONTNEED)

    def drop(self) -> None:
        """It is not needed any more; the memory goes with the last view of it."""
        self._is_wanted.clear()

    def places(self, sizes: Sequence[int]) -> list[memoryview]:
        """Room for files of these sizes, each beginning on a huge page."""
        view = memoryview(self._memory)
        self._starts = _starts(sizes)
        return [view[start : start + size] for start, size in zip(self._starts, sizes, strict=True)]

    def become(self, number: int, path: Path) -> None:
        """The place of that number is the file from now on: one copy for all who map it.

        The file has the very bytes that are in the place, so whoever reads them sees no change.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                map_file_at(self._address + self._starts[number], file.fileno(), size)


def landing_bytes(sizes: Sequence[int]) -> int:
    """What a landing needs to have room for files of these sizes."""
    return _starts([*sizes, 0])[-1]


def _starts(sizes: Sequence[int]) -> list[int]:
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    return starts
