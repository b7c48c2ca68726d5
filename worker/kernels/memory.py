"""Memory that reads as zeros and costs nothing until it is written."""

import contextlib
import math
import mmap

import torch


def zero_pages(
    shape: tuple[int, ...], dtype: torch.dtype, *, is_huge: bool = False
) -> torch.Tensor:
    """A tensor of zeros on the CPU, whose pages are taken from the machine at their first write.

    Huge ones are read faster, where the machine has them, and taken 2 MB at a time.
    """
    pages = mmap.mmap(
        -1,
        math.prod(shape) * dtype.itemsize,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    )
    if is_huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
