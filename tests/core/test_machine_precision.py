"""The dtype of a forward pass."""

from __future__ import annotations

import torch

from selfpatch.core.machine import autocast_dtype


def test_a_precision_names_a_dtype() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("auto", torch.device("mps")) is None
