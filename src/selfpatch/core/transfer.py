"""Copies of tensors from the CPU to a device."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy a CPU tensor to a device, without waiting on CUDA.

    On CUDA the source may be freed at once. MPS would read it after it was freed, so that other devices are waited for.
    """
    return values.to(device, non_blocking=torch.device(device).type == "cuda")
