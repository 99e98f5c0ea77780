"""What a step on the CPU frees, the next one takes again: the C library should not give it back in between."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Numbers of glibc's `mallopt`."""


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, from now on; elsewhere nothing happens.

    By itself it maps large tensors anew each time, and the system clears their pages one by one.
    """
    _set({M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0})


def return_freed_memory() -> None:
    """As glibc comes to do by itself once large tensors have been freed: what `keep_freed_memory` is measured against.
    What was kept is given back."""
    _set({M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_MMAP_MAX: 2**16})
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)
