"""The most memory that a call takes: on a CUDA device as its allocator says, elsewhere by a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_memory(make: Callable[..., Callable[[], object]], *arguments: Any, device: torch.device) -> int:
    """Bytes above what the process takes before anything is made.

    Args:
        make: gives what is to be called, from the arguments; both must be picklable, as a new process is started.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        call = make(*arguments)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, make, arguments))
    process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError:
        raise ValueError("the measurement of memory was killed, perhaps for want of it; use a smaller batch") from None
    finally:
        process.join()
    return peak


def _measure(sender: Any, make: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    before = largest_resident_size()
    make(*arguments)()
    sender.send(largest_resident_size() - before)


def largest_resident_size() -> int:
    """Bytes, since this program began."""
    try:
        status = Path("/proc/self/status").read_text()  # Linux's `getrusage` counts what the parent process took, too
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource  # not on Windows

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024
