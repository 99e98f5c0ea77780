"""Choice of the dtype of a forward pass."""

from __future__ import annotations

import torch

from selfpatch.core.machine import processor_flags


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16, or None for float32.

    Args:
        precision: `bf16`, `fp32`, or `auto` for bfloat16 where the device computes it in hardware.
        device: device of the forward pass.
    """
    if precision == "auto":
        fast = {
            "cuda": lambda: torch.cuda.get_device_capability(device) >= (8, 0),
            "cpu": lambda: "avx512_bf16" in processor_flags(),
        }
        precision = "bf16" if device.type in fast and fast[device.type]() else "fp32"
    return torch.bfloat16 if precision == "bf16" else None
