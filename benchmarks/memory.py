"""Peak memory of a call: from the allocator on a CUDA device, from a process of its own elsewhere."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_memory(make: Callable[..., Callable[[], object]], *arguments: Any, device: torch.device) -> int:
    """Return the peak memory of a call in bytes, above what the process takes before anything is made.

    Args:
        make: returns the function to call, given the arguments. Both must be picklable, as a new process is started.
        arguments: arguments of `make`.
        device: device that the call computes on.
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
    """Return the largest resident size of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()  # Linux's `getrusage` includes the parent process's size
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource  # not on Windows

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024
