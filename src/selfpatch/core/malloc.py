"""Switch of the C library to keep freed memory, because the next training step on the CPU takes it again."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Option numbers of glibc's `mallopt`."""


def keep_freed_memory() -> None:
    """Let glibc keep freed memory from now on; do nothing with other C libraries.

    Without this, glibc maps large tensors anew each time, and the system clears their pages one by one.
    """
    _set({M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0})


def return_freed_memory() -> None:
    """Let glibc return freed memory, as it does by default once large tensors were freed; give back what was kept."""
    _set({M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_MMAP_MAX: 2**16})
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)
