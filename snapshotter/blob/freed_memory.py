"""What becomes of memory that is freed: chunks are megabytes each, and come one after the other."""

import ctypes
from typing import Final

# malloc.h of glibc
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8

_LARGEST_BYTES: Final = 32 << 20  # the most that glibc takes; a larger chunk is mapped by itself
_KEPT_BYTES: Final = 64 << 20  # of each arena
_NUM_ARENAS: Final = 2


def keep_freed_memory() -> None:
    """Large blocks that are freed are given out again; glibc maps them one by one and gives them
    back to the kernel, which makes their pages anew, zeroed, each time.

    For this process, from now on; before it has threads, which get arenas of their own. C libraries
    other than glibc go on as they do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (
            (_ARENA_MAX, _NUM_ARENAS),
            (_MMAP_THRESHOLD, _LARGEST_BYTES),
            (_TRIM_THRESHOLD, _KEPT_BYTES),
        ):
            mallopt(option, value)
