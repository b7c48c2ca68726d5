"""Memory that is mapped ahead of its use: what Linux is told of ranges of pages."""

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FREE: Final = 8  # the content is not needed any more; the pages go when memory is short
HUGE: Final = 14
POPULATE_READ: Final = 22  # Linux 5.14; the mmap module has no names for these two yet
POPULATE_WRITE: Final = 23
HUGE_PAGE_BYTES: Final = 2 << 20

# The mmap module's own madvise holds the interpreter's lock for as long as pages are made.
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_MAP_FIXED: Final = 0x10
_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_mmap.restype = ctypes.c_void_p
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

_munmap = ctypes.CDLL(None).munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

_mincore = ctypes.CDLL(None).mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_LOOK_BYTES: Final = 1 << 30


def advise(address: int, size: int, advice: int) -> bool:
    """Whether the kernel took the advice; other threads run meanwhile."""
    return bool(_madvise(address, size, advice) == 0)


def write_protect(address: int, size: int) -> bool:
    """Who writes there from now on is ended; whether the kernel agreed."""
    return bool(_mprotect(address, size, mmap.PROT_READ) == 0)


def map_file_at(address: int, file: int, size: int) -> bool:
    """Puts a file's pages where others are mapped, in one step; whether the kernel did."""
    found = _mmap(address, size, mmap.PROT_READ, mmap.MAP_PRIVATE | _MAP_FIXED, file, 0)
    return bool(found == address)


def cold_bytes(path: Path) -> int:
    """How much of a file is not in the page cache. Raises OSError."""
    size = path.stat().st_size
    if not size:
        return 0
    with path.open("rb") as file:
        mapped = _mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), 0)
    if mapped == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), f"cannot map {path.name}")
    try:
        return sum(_cold_in(mapped + start, length) for start, length in steps(size, _LOOK_BYTES))
    finally:
        _munmap(mapped, size)


def _cold_in(address: int, size: int) -> int:
    pages = -(-size // mmap.PAGESIZE)
    are_here = ctypes.create_string_buffer(pages)
    if _mincore(address, size, are_here):
        return 0  # not for us to know: nothing is made ready for it
    return min(size, are_here.raw.count(0) * mmap.PAGESIZE)


def address_of(memory: mmap.mmap) -> int:
    """Of the first byte of a mapping that may be written."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def steps(size: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, size) of ranges that follow each other and cover `size`."""
    for start in range(0, size, step):
        yield start, min(step, size - start)
