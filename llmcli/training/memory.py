"""Freed memory stays with the process, for a run that asks for the same sizes in every step."""

from __future__ import annotations

import ctypes

# Of glibc malloc.h: give nothing back at the end of the heap, ask for no mapping of its own, one heap for all threads.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
NEVER = 2**31 - 1  # bytes


def keep() -> bool:
    """Let the C library keep what is freed; False where it offers no such thing. Before threads, or they have heaps.

    Else each tensor of some megabytes is a new mapping, whose pages the kernel clears when they are first written:
    a third of the time of a small step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((TRIM_THRESHOLD, NEVER), (MMAP_MAX, 0), (ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)
