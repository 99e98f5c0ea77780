"""Devices that tests run on: the CPU, and CUDA where there is one.

`benchmarks/gpu.sh` runs the tests marked `cuda`; it finds their files by the import of this module.
"""

from __future__ import annotations

import pytest
import torch

NEEDS_CUDA = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"))
"""Marks of a test that needs a GPU."""
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)]
"""Values of a test's parameter."""
