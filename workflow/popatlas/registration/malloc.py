"""Keep freed memory while an optimisation runs, instead of asking the system for it again at each step.

The GNU allocator gives arrays of 32 MB and more back to the system as soon as they are freed. A field of 160x192x160 voxels
is larger, and the pages of its successor have to be mapped and zeroed again: a quarter of the time of a registration.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MAPPED_ARRAYS = 65536  # the allocator's default
NEVER, AFTERWARDS = 2**31 - 1, 64 * 2**20  # bytes that may lie free before they are given back


@contextmanager
def kept_memory() -> Iterator[None]:
    """Serve large arrays from memory that stays with the process, and give it back at the end; glibc only."""
    allocator = ctypes.CDLL(None)
    if not hasattr(allocator, "mallopt") or not hasattr(allocator, "malloc_trim"):
        yield
        return
    allocator.mallopt(M_MMAP_MAX, 0)
    allocator.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        allocator.mallopt(M_MMAP_MAX, MAPPED_ARRAYS)
        allocator.mallopt(M_TRIM_THRESHOLD, AFTERWARDS)
        allocator.malloc_trim(0)
