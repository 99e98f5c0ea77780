"""Choice of the dtype of a forward pass."""

import torch

from selfpatch.core.machine import processor_flags


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16 for `bf16`, None for `fp32`, and for `auto` bfloat16 if the device computes it in hardware."""
    fast = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif precision == "auto" and device.type == "cpu":
        fast = "avx512_bf16" in processor_flags()
    return torch.bfloat16 if fast else None
