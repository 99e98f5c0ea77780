"""Memory that is freed: kept, or given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from selfpatch.core.malloc import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
kept = faults()
return_freed_memory()
print(kept, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_kept_memory_is_not_mapped_anew() -> None:
    """In a process of its own, as it is for the life of it."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    assert kept * 20 < returned
